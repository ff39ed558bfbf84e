"""Too little memory makes the batches smaller; a full disk costs no checkpoint that is complete."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_assets.errors import UserError
from finetune_assets.models.kernels.loss import supervised_nll
from finetune_assets.models.planning.schedule import Schedule
from finetune_assets.models.runs import recovery
from finetune_assets.models.training import trainer
from finetune_assets.storage import checkpoints
from finetune_assets.storage.checkpoints import AttemptNote
from finetune_assets_tests.models.running import Noting, adapter, start, train_here

SHORT: dict[str, Any] = {"num_train_epochs": 2, "load_best_model_at_end": False}
MESSAGES = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    "python": MemoryError(),
    "system": OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
}


class Memory:
    """Holds so many tokens of a forward pass, from a pass on."""

    def __init__(self, tokens: int, error: Exception, passes_before: int = 0) -> None:
        self.tokens, self.error, self.left = tokens, error, passes_before

    def __call__(self, model: Any, batch: Any, **how: Any) -> Any:
        self.left -= 1
        if self.left < 0 and int(batch["tokens"]) > self.tokens:
            raise self.error
        return supervised_nll(model, batch, **how)


@pytest.mark.parametrize("kind", MESSAGES)
def test_batches_halve_until_memory_suffices(
    kind: str, project: Path, tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**SHORT, "num_train_epochs": 1, "per_device_train_batch_size": 4}
    least = {**recipe, "per_device_train_batch_size": 1}
    train_here(tiny_base, data, project / "least", **least)
    report = Noting()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "supervised_nll", Memory(64, MESSAGES[kind]))
        made = train_here(tiny_base, data, project / "a", report, **recipe)
    said = [line for line in report.lines if line.startswith("out of memory")]
    assert [line.split(":")[1].split(" contexts")[0].strip() for line in said] == ["2 x 2", "1 x 4"]
    assert (made["schedule"]["micro_batch"], made["schedule"]["accumulation"]) == (1, 4)
    assert adapter(project / "a") == adapter(project / "least")


def test_smaller_batches_go_on_from_the_last_checkpoint(
    project: Path, tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**SHORT, "lora": {"r": 4, "alpha": 8, "dropout": 0.0}}
    least = train_here(
        tiny_base, data, project / "least", **recipe, **{"per_device_train_batch_size": 1}
    )
    with monkeypatch.context() as patch:
        memory = Memory(64, MESSAGES["cuda"], passes_before=14)
        patch.setattr(trainer, "supervised_nll", memory)
        made = train_here(tiny_base, data, project / "a", **recipe)
    assert made["resumed_from_step"] == 5
    assert made["steps"] == least["steps"] == 10
    assert made["epochs"] == 2.0
    expected = least["validation_loss"][-1][1]
    assert made["validation_loss"][-1][1] == pytest.approx(expected, rel=1e-3)


def test_one_context_that_does_not_fit_is_an_error_with_a_remedy(
    project: Path, tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "supervised_nll", Memory(8, MESSAGES["cuda"]))
    with pytest.raises(UserError, match=r"one context in a forward pass(.|\n)*max_length"):
        train_here(tiny_base, data, project / "a", **SHORT)


@pytest.mark.parametrize(
    ("before", "after"), [((8, 2), (4, 4)), ((3, 2), (1, 6)), ((6, 1), (3, 2)), ((5, 3), (1, 15))]
)
def test_halving_keeps_the_contexts_of_a_step(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    found = recovery.halve(Schedule(*before, total_steps=9, eval_steps=3, save_steps=2))
    assert found == Schedule(*after, total_steps=9, eval_steps=3, save_steps=2)


def test_what_the_system_ended_for_want_of_memory_begins_smaller(
    project: Path, tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not say so itself: it left a note, and the system counts such ends."""
    root = checkpoints.folder("a")
    AttemptNote(micro_batch=2, out_of_memory_kills=recovery.out_of_memory_kills()).write(root)
    report = Noting()
    made = train_here(tiny_base, data, project / "a", report, **SHORT)
    assert made["schedule"]["micro_batch"] == 2, "it was ended by something else"
    checkpoints.remove("a")
    AttemptNote(micro_batch=2, out_of_memory_kills=4).write(root)
    monkeypatch.setattr(recovery, "out_of_memory_kills", lambda: 5)
    made = train_here(tiny_base, data, project / "a", report, **SHORT)
    assert made["schedule"]["micro_batch"] == 1
    assert made["schedule"]["accumulation"] == 4
    assert "the system ran out of memory in the last attempt: 1 x 4" in "\n".join(report.lines)
    made = train_here(tiny_base, data, project / "a", report, **SHORT)
    assert made["schedule"]["micro_batch"] == 1, "an attempt later it is known still"


def test_the_systems_count_is_read() -> None:
    counters = Path("/proc/vmstat").read_text().split()
    assert recovery.out_of_memory_kills() == int(counters[counters.index("oom_kill") + 1])


def use_little_memory() -> None:
    """Of this process: what it has, and 150 MB more."""
    import resource

    import psutil

    import finetune_assets.models.training.trainer as module

    def limited(model: Any, batch: Any, **how: Any) -> Any:
        if int(batch["tokens"]) > 64:
            limit = psutil.Process().memory_info().data + 150 * 10**6
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
            kept = torch.empty(2 * 10**8)  # as the activations of a large batch would
            resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
            del kept
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
        return supervised_nll(model, batch, **how)

    module.supervised_nll = limited  # type: ignore[assignment]


def test_a_cpu_that_has_no_more_memory_halves_the_batches(
    project: Path, tiny_base: Path, data: Path
) -> None:
    running = start(tiny_base, data, project / "a", use_little_memory, **SHORT)
    assert running.finish()["schedule"]["micro_batch"] == 1, running.said
    assert "out of memory: 1 x 4" in running.said


FILES = ("optimizer.pt", "rng_state.pth", "trainer_state.json")


@pytest.mark.parametrize("file", FILES)
def test_a_full_disk_keeps_the_last_complete_checkpoint(
    file: str, project: Path, tiny_base: Path, data: Path
) -> None:
    root = checkpoints.folder("a")
    train_here(tiny_base, data, project / "whole", **SHORT)

    def fill(message: str) -> None:
        """What is written to this file of the second checkpoint, the system says, fits no disk."""
        if message.startswith("step 5/10"):
            (root / "checkpoint-10").mkdir()
            (root / "checkpoint-10" / file).symlink_to("/dev/full")

    with pytest.raises(UserError, match=r"disk is full(.|\n)*remedy: free space and run again"):
        train_here(tiny_base, data, project / "a", Noting(on_log=fill), **SHORT)
    assert (root / "checkpoint-5" / checkpoints.COMPLETE).exists()
    made = train_here(tiny_base, data, project / "a", **SHORT)
    assert made["resumed_from_step"] == 5
    assert adapter(project / "a") == adapter(project / "whole")


def test_a_disk_that_is_full_before_the_first_step(
    project: Path, tiny_base: Path, data: Path
) -> None:
    root = checkpoints.folder("a")
    AttemptNote(micro_batch=1, out_of_memory_kills=0).write(root)
    (root / f".attempt.json.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(UserError, match="disk is full"):
        train_here(tiny_base, data, project / "a", **SHORT)
    assert AttemptNote.read(root) == AttemptNote(micro_batch=1, out_of_memory_kills=0)


def test_checkpoints_of_another_number_of_steps_are_left_aside(tmp_path: Path) -> None:
    """As where `devices.count: auto` meets another machine: the same recipe, other batches."""
    root, said = tmp_path / "checkpoints", []
    newest = root / "checkpoint-62"
    newest.mkdir(parents=True)
    (newest / "trainer_state.json").write_text('{"max_steps": 72}')
    checkpoints.mark_complete(newest)
    same, other = Schedule(2, 2, 72, 6, 6), Schedule(2, 1, 48, 4, 4)
    recovery.forget_another_schedule(root, same, said.append)
    assert newest.exists()
    assert not said
    recovery.forget_another_schedule(root, other, said.append)
    assert not newest.exists()
    assert "run of 72 steps" in said[0]
