"""When training ends, which checkpoint is kept, and that a cut changes neither."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from finetune_assets.errors import UserError
from finetune_assets.models.kernels.loss import supervised_nll
from finetune_assets.models.training import attempt, trainer
from finetune_assets.storage import checkpoints
from finetune_assets_tests.models.running import Cut, Noting, adapter, cutting, train_here

Losses = Callable[..., None]
PATIENT = {"early_stopping_patience": 2}


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Losses:
    """Says what the validation losses are, by step."""

    def said(**by_step: float) -> None:
        monkeypatch.setattr(
            trainer.SupervisedTrainer,
            "_validation_loss",
            lambda made: by_step[f"step_{made.state.global_step}"],
        )

    return said


def cut(place: str, count: int, train_again: Callable[[], Any]) -> Any:
    """Cut a training off at the n-th call of a function of `trainer` or `attempt`."""
    owner = attempt if place == "save_adapter" else trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, place, cutting(getattr(owner, place), count))
        with pytest.raises(Cut):
            train_again()
    return train_again()


def tensors_equal(one: Path, other: Path) -> bool:
    first, second = (load_file(p / "adapter_model.safetensors") for p in (one, other))
    return first.keys() == second.keys() and all(first[n].equal(second[n]) for n in first)


@pytest.mark.parametrize(
    ("place", "count", "resumed"),
    [("supervised_nll", 23, 10), ("save_adapter", 1, 20)],
    ids=["while it waits", "after it has stopped"],
)
def test_early_stopping_counts_on_after_a_cut(
    place: str,
    count: int,
    resumed: int,
    losses: Losses,
    project: Path,
    tiny_base: Path,
    data: Path,
) -> None:
    losses(step_5=3.0, step_10=2.0, step_15=2.5, step_20=2.1, step_25=1.0, step_30=1.0)
    report = Noting()
    whole = train_here(tiny_base, data, project / "whole", report, **PATIENT)
    assert (whole["steps"], whole["best_step"]) == (20, 10)
    assert "stopped early after step 20 of 30" in report.lines[-1]
    made = cut(place, count, lambda: train_here(tiny_base, data, project / "a", **PATIENT))
    assert made["resumed_from_step"] == resumed
    assert (made["steps"], made["best_step"]) == (20, 10)
    assert made["validation_loss"] == whole["validation_loss"]
    assert adapter(project / "a") == adapter(project / "whole")


def test_an_improvement_within_the_threshold_is_none(
    losses: Losses, project: Path, tiny_base: Path, data: Path
) -> None:
    losses(step_5=3.0, step_10=2.95, step_15=2.91, step_20=1.0, step_25=1.0, step_30=1.0)
    recipe = {**PATIENT, "early_stopping_threshold": 0.1}
    assert train_here(tiny_base, data, project / "a", **recipe)["steps"] == 15


@pytest.mark.parametrize("best", [True, False])
def test_the_best_or_the_last_checkpoint_becomes_the_adapter(
    best: bool, losses: Losses, project: Path, tiny_base: Path, data: Path
) -> None:
    losses(step_5=3.0, step_10=2.0, step_15=2.5, step_20=2.2, step_25=2.1, step_30=2.3)
    recipe = {"load_best_model_at_end": best, "save_total_limit": 1}
    root = checkpoints.folder("a")
    made = cut("supervised_nll", 43, lambda: train_here(tiny_base, data, project / "a", **recipe))
    assert (made["steps"], made["best_step"], made["best_validation_loss"]) == (30, 10, 2.0)
    kept = {checkpoints.step_of(path) for path in root.glob("checkpoint-*")}
    assert kept == ({10, 30} if best else {30})
    assert tensors_equal(project / "a", root / f"checkpoint-{10 if best else 30}")


def test_a_best_checkpoint_that_is_gone_is_not_replaced_by_another_in_silence(
    losses: Losses, project: Path, tiny_base: Path, data: Path
) -> None:
    losses(step_5=3.0, step_10=2.0, step_15=2.5, step_20=2.2, step_25=2.1, step_30=2.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "supervised_nll", cutting(supervised_nll, 43))
        with pytest.raises(Cut):
            train_here(tiny_base, data, project / "a")
    (checkpoints.folder("a") / "checkpoint-10" / checkpoints.COMPLETE).unlink()
    with pytest.raises(UserError, match=r"checkpoint-10: the best checkpoint is gone"):
        train_here(tiny_base, data, project / "a")


def test_a_run_that_is_over_learns_no_further_step(
    project: Path, tiny_base: Path, data: Path
) -> None:
    """Its last step is in the middle of an epoch, where transformers would go on."""
    recipe = {"max_steps": 13, "lr_scheduler_type": "constant", "warmup_steps": 0}
    whole = train_here(tiny_base, data, project / "whole", **recipe)
    made = cut("save_adapter", 1, lambda: train_here(tiny_base, data, project / "a", **recipe))
    assert made["resumed_from_step"] == made["steps"] == whole["steps"] == 13
    assert adapter(project / "a") == adapter(project / "whole")
