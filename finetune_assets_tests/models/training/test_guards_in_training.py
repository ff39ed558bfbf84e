"""What would teach wrongly stops a run before it spoils the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_assets.errors import UserError
from finetune_assets.models.kernels import loss
from finetune_assets.models.kernels.loss import supervised_nll
from finetune_assets.models.training import attempt, engine, trainer
from finetune_assets.storage import checkpoints
from finetune_assets_tests.models.running import adapter, train_here

SHORT: dict[str, Any] = {"num_train_epochs": 2, "save_steps": 1, "load_best_model_at_end": False}


def test_a_loss_that_is_not_finite_stops_the_run(
    project: Path, tiny_base: Path, data: Path
) -> None:
    with pytest.raises(UserError, match=r"not finite(.|\n)*lower `training.learning_rate`"):
        train_here(tiny_base, data, project / "a", learning_rate=1e30, max_grad_norm=1e30)


def spoiled_in_pass(number: int, how: Any) -> Any:
    passes = 0

    def spoiled(model: Any, batch: Any, **options: Any) -> Any:
        nonlocal passes
        nll, count = supervised_nll(model, batch, **options)
        passes += 1
        return (how(nll), count) if passes == number else (nll, count)

    return spoiled


class InfiniteGradient(torch.autograd.Function):
    """A loss that looks well, with a gradient that is not."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.inf


@pytest.mark.parametrize(
    "how", [lambda nll: nll * torch.nan, lambda nll: nll / 0, InfiniteGradient.apply]
)
@pytest.mark.parametrize("accumulated", [11, 12], ids=["first pass", "last pass"])
def test_it_stops_before_the_step_that_would_spoil_the_weights(
    how: Any,
    accumulated: int,
    project: Path,
    tiny_base: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A forward pass of step 6 goes wrong, and each step is saved."""
    train_here(tiny_base, data, project / "whole", **SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "supervised_nll", spoiled_in_pass(accumulated, how))
        with pytest.raises(UserError, match="step 6: the loss or its gradient is not finite"):
            train_here(tiny_base, data, project / "a", **SHORT)
    kept = checkpoints.latest(checkpoints.folder("a"))
    assert kept is not None
    assert kept.name == "checkpoint-5"
    assert train_here(tiny_base, data, project / "a", **SHORT)["resumed_from_step"] == 5
    assert adapter(project / "a") == adapter(project / "whole")


def test_a_validation_loss_that_is_not_finite_is_not_saved(
    project: Path, tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = spoiled_in_pass(3, lambda nll: nll * torch.nan)
    monkeypatch.setattr(loss, "supervised_nll", spoiled)
    with pytest.raises(UserError, match=r"step 10: the validation loss is not finite \(nan\)"):
        train_here(tiny_base, data, project / "a", **{**SHORT, "save_steps": 5})
    kept = checkpoints.latest(checkpoints.folder("a"))
    assert kept is not None
    assert kept.name == "checkpoint-5"


def changed(change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings begin with a model that `change` has changed."""

    def built(*given: Any, **named: Any) -> Any:
        made = engine.build(*given, **named)
        change(made.model)
        return made

    monkeypatch.setattr(attempt, "build", built)


def detach(model: Any) -> None:
    """What lies before the second layer learns nothing, and the loss still falls."""
    engine.layers(model)[1].register_forward_pre_hook(lambda _, args: (args[0].detach(), *args[1:]))


def mix(model: Any) -> None:
    """Each token sees the one before it, as in a recurrent layer, also across documents."""

    def add_the_last(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return given[0] + torch.nn.functional.pad(given[0], (0, 0, 1, -1)), *given[1:]

    engine.layers(model)[0].register_forward_pre_hook(add_the_last)


def test_a_layer_that_gets_no_gradient_stops_the_first_step(
    project: Path, tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(detach, monkeypatch)
    with pytest.raises(UserError, match=r"after 1 step no finite gradient .*layers\.0\."):
        train_here(tiny_base, data, project / "a", **SHORT)
    assert checkpoints.latest(checkpoints.folder("a")) is None


def test_documents_that_see_each_other_stop_a_packed_run(
    project: Path, tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(mix, monkeypatch)
    with pytest.raises(UserError, match="documents in one row see each other"):
        train_here(tiny_base, data, project / "a", **SHORT)
    train_here(tiny_base, data, project / "a", packing=False, **SHORT)
