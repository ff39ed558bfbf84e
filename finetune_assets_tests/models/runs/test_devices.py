"""Several devices: two CPU processes learn what one does, and end together whatever happens."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from finetune_assets import settings
from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.planning.hardware import this_machine
from finetune_assets.models.runs import distributed
from finetune_assets.models.runs.distributed import End, ProcessFailed
from finetune_assets.models.runs.train import train
from finetune_assets.models.tokenization.contexts import Contexts
from finetune_assets.models.training import order
from finetune_assets.models.training.request import Quiet, Request
from finetune_assets.storage import checkpoints
from finetune_assets_tests.models.data import make

RECIPE: dict[str, Any] = {
    "num_train_epochs": 3,
    "max_length": 64,
    "train_batch_size": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.01,
    "evals_per_epoch": 1,
    "precision": "fp32",
    "lora": {"r": 4, "alpha": 8},
}
TWO = {"count": 2}


pytestmark = pytest.mark.xdist_group("devices")
"""In one worker, so that no more than two processes train at once."""


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("devices")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(settings.STORAGE_VARIABLE, str(folder / "storage"))
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        yield folder


@pytest.fixture(scope="module")
def data(store: Path, tiny_base: Path) -> Path:
    """21 contexts of two rows each, so that the last step has one, which only one process gets."""
    answers = [f"the answer is {i % 7}" for i in range(41)]
    out = make(tiny_base, store, answers, answers[:9])
    assert len(Contexts.open(out, "train")) % 4 == 1
    assert len(Contexts.open(out, "validation")) % 2 == 1
    return out


class Said(Quiet):
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[int] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.steps.append(step)


class Runs:
    """Trains under a name, and keeps what comes of it."""

    def __init__(self, base: Path, data: Path, folder: Path) -> None:
        self.base, self.data, self.folder = base, data, folder
        self.said = Said()

    def __call__(self, name: str, **changes: Any) -> dict[str, Any]:
        (self.folder / name).mkdir(exist_ok=True)
        training = Training.model_validate({**RECIPE, **changes})
        request = Request(self.base, self.data, self.folder / name, name, training)
        return train(request, this_machine(), self.said)

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "adapter_model.safetensors")

    def require_same(self, name: str, made: dict[str, Any], other: str, whole: Any) -> None:
        """Curves and adapters are the same but for rounding."""
        for curve in ("train_loss", "validation_loss"):
            steps, losses = zip(*made[curve], strict=True)
            expected = dict(whole[curve])
            assert list(steps) == list(expected)
            assert losses == pytest.approx(list(expected.values()), abs=1e-4)
        expected_weights = self.weights(other)
        assert self.weights(name).keys() == expected_weights.keys()
        for key, tensor in self.weights(name).items():
            torch.testing.assert_close(tensor, expected_weights[key], rtol=0, atol=1e-4)


@pytest.fixture
def runs(tiny_base: Path, data: Path, store: Path) -> Runs:
    return Runs(tiny_base, data, store)


@pytest.fixture(scope="module")
def one(tiny_base: Path, data: Path, store: Path) -> dict[str, Any]:
    """What one process makes of the recipe, under the name `one`."""
    return Runs(tiny_base, data, store)("one")


def processes() -> list[psutil.Process]:
    """Those that train for this one."""
    found = psutil.Process().children(recursive=True)
    return [p for p in found if "finetune_assets.models.runs.process" in " ".join(p.cmdline())]


def after_a_checkpoint(name: str, act: Callable[[], None]) -> threading.Thread:
    """Do something as soon as a run has a complete checkpoint."""

    def watch() -> None:
        root, deadline = checkpoints.folder(name), time.monotonic() + 120
        while not list(root.glob(f"checkpoint-*/{checkpoints.COMPLETE}")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_killed_process_is_named_and_the_resumed_run_learns_what_one_process_does(
    runs: Runs, one: dict[str, Any]
) -> None:
    def kill() -> None:
        next(p for p in processes() if p.environ()["RANK"] == "1").kill()

    killer = after_a_checkpoint("two", kill)
    with pytest.raises(ProcessFailed, match=r"process 1 of 2 was killed by SIGKILL(.|\n)*remedy"):
        runs("two", devices=TWO, save_steps=2)
    killer.join()
    assert processes() == []
    made = runs("two", devices=TWO, save_steps=2)
    assert made["processes"] == 2
    assert made["resumed_from_step"] >= 2
    assert made["schedule"]["accumulation"] * 2 == one["schedule"]["accumulation"]
    assert runs.said.steps[-1] == one["steps"]
    runs.require_same("two", made, "one", one)


@pytest.mark.slow
def test_a_model_divided_over_processes_learns_the_same(runs: Runs, one: dict[str, Any]) -> None:
    """4-bit weights, which FSDP spreads over both; their parts lie in the checkpoints."""
    made = runs(
        "divided",
        devices={"count": 2, "strategy": "fsdp"},
        sample_prompts=["what is question 3?"],
        sample_max_new_tokens=2,
    )
    runs.require_same("divided", made, "one", one)
    parts = checkpoints.folder("divided").glob("checkpoint-18/pytorch_model_fsdp_0/*.distcp")
    assert len(list(parts)) == 2
    assert len(made["samples"]) == 3


@pytest.mark.slow
def test_term_ends_all_after_the_same_step_with_one_checkpoint(runs: Runs) -> None:
    teller = after_a_checkpoint("told", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        runs("told", devices=TWO, num_train_epochs=300, save_steps=5, eval_steps=1000)
    teller.join()
    assert left.value.code == 128 + signal.SIGTERM
    assert processes() == []
    root = checkpoints.folder("told")
    kept = checkpoints.latest(root)
    assert kept is not None
    assert checkpoints.step_of(kept) < 1000
    assert sorted(p.name for p in kept.glob("rng_state_*")) == [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]
    assert all((p / checkpoints.COMPLETE).exists() for p in root.glob("checkpoint-*"))


@pytest.mark.slow
def test_memory_that_one_process_lacks_halves_the_batches_of_all_and_its_error_arrives_whole(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "PROCESS", "finetune_assets_tests.models.runs.failing_process")
    with pytest.raises(UserError, match=r"here: broken\n  remedy: mend it"):
        runs("failing", devices=TWO)
    assert any("out of memory: 1 x 2 contexts a step" in line for line in runs.said.lines)
    logs = checkpoints.folder("failing") / "processes" / distributed.LOGS
    said = [log.read_text() for log in logs.glob("*/attempt_0/0/stderr.log")]
    assert said, "the other process has no log"
    assert not [text for text in said if "timed out" in text.lower()], "it waited to the end"


def test_each_step_learns_the_same_contexts_however_many_processes_there_are(data: Path) -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    contexts = Contexts.open(data, "train")

    def steps(micro: int, count: int, passes: int, in_order: bool) -> list[set[int]]:
        rounds = order.FullRounds(contexts, micro * count)
        made: list[set[int]] = []
        for rank in range(count):
            sampler = order.make_sampler(rounds, in_order, 7)
            batches = BatchSampler(sampler, micro, drop_last=False)
            mine = list(BatchSamplerShard(batches, count, rank))
            for at in range(0, len(mine), passes):
                learned = {i for b in mine[at : at + passes] for i in b if i < len(contexts)}
                if at // passes == len(made):
                    made.append(set())
                made[at // passes] |= learned
        return made

    for in_order in (True, False):
        alone = steps(2, 1, 4, in_order)
        assert [len(step) for step in alone] == [8, 8, 5]
        assert steps(2, 2, 2, in_order) == steps(1, 4, 2, in_order) == alone
    filler = order.FullRounds(contexts, 8)[len(contexts)]
    assert (filler.labels == -100).all()


@pytest.mark.parametrize(
    ("ends", "rank"),
    [
        # A kill is seen a moment after the error that it brings about.
        ([End(0, 1, 10.1, {}), End(1, -9, 10.9, {})], 1),
        ([End(0, 1, 10.1, {"error": {}}), End(1, 1, 10.3, {})], 0),
        # The launcher ends the others, and kills what does not end by itself.
        ([End(0, -15, 10.0, {}), End(1, 1, 10.1, {"out_of_memory": True})], 1),
        ([End(0, -9, 41.0, {}), End(1, 1, 10.0, {})], 1),
    ],
)
def test_the_process_that_ended_first_is_to_blame(ends: list[End], rank: int) -> None:
    assert distributed.find_culprit(ends).rank == rank


def test_a_crash_shows_the_code_and_the_last_lines() -> None:
    error = distributed.explain(End(2, 3, 0.0, {}), 4, "segment\nfault")
    assert str(error).startswith("process 2 of 4 ended with code 3")
    assert "segment\nfault\n  remedy" in str(error)
