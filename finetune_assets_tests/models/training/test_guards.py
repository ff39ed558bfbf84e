"""A layer that gets no gradient stops training, by name; what is only late does not."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.adapters.loading import add_adapter, load_base
from finetune_assets.models.planning.hardware import this_machine
from finetune_assets.models.training import guards
from finetune_assets.models.training.guards import GradientGuard

IDS = torch.tensor([[5, 6, 7, 8, 20, 90, 33, 41] * 2])


def model_of(base: Path, method: str = "lora", **lora: Any) -> Any:
    training = Training(
        method=method, quantization="none", lora={"r": 4, "alpha": 8, "dora": True, **lora}
    )
    hardware = dataclasses.replace(this_machine(), dtype="float32")
    torch.manual_seed(0)
    return add_adapter(load_base(base, hardware, training), training, base).train()


def steps(model: Any, count: int, learning_rate: float = 1e-3) -> GradientGuard:
    """Train with the guard, as the trainer does."""
    guard = GradientGuard(model)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), learning_rate)
    for _ in range(count):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        guard.check()
        if learning_rate:  # 0 leaves everything, as fp16's loss scaling does where it skips
            optimizer.step()
        optimizer.zero_grad()
    return guard


def detach_a_layer(model: Any) -> None:
    """Nothing before it learns, and the loss still falls."""
    model.model.model.layers[1].register_forward_pre_hook(
        lambda _, args, kwargs: ((args[0].detach(), *args[1:]), kwargs), with_kwargs=True
    )


def zero(part: str) -> Callable[[Any], None]:
    def spoil(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.register_hook(torch.zeros_like)

    return spoil


def spoil_with(value: float) -> Callable[[Any], None]:
    def spoil(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if "layers.0.mlp.up_proj.lora_B" in name:
                parameter.register_hook(lambda gradient: torch.full_like(gradient, value))

    return spoil


@pytest.mark.parametrize("method", ["lora", "full"])
def test_all_is_well_after_two_steps(method: str, tiny_base: Path) -> None:
    assert not steps(model_of(tiny_base, method), 1).done or method == "full"
    guard = steps(model_of(tiny_base, method, modules_to_save=["lm_head"]), 2)
    assert guard.done
    guard.check()  # costs nothing, and asks for no gradients any more


@pytest.mark.parametrize(
    ("spoil", "count", "named"),
    [
        (
            detach_a_layer,
            1,
            r"after 1 step no finite gradient .* 14 trained .*layers\.0\.\S+lora_B",
        ),
        (zero("layers.1.mlp.up_proj.lora_B"), 1, r"1 trained .*layers\.1\.mlp\.up_proj\.lora_B"),
        (zero("layers.0.self_attn.k_proj.lora_A"), 2, r"after 2 steps .*k_proj\.lora_A"),
        (zero("lora_magnitude_vector"), 1, r"14 trained .*magnitude_vector\S* and 11 more"),
    ],
)
def test_what_gets_no_gradient_is_named(
    spoil: Callable[[Any], None], count: int, named: str, tiny_base: Path
) -> None:
    model = model_of(tiny_base)
    spoil(model)
    with pytest.raises(UserError, match=named) as caught:
        steps(model, count)
    assert "training.lora.targets" in caught.value.remedy


def test_a_weight_that_nothing_uses_is_named_when_all_are_trained(tiny_base: Path) -> None:
    model = model_of(tiny_base, "full")
    model.model.layers[0].mlp.spare = torch.nn.Linear(4, 4, bias=False)
    with pytest.raises(
        UserError, match=r"1 trained matrices: model\.layers\.0\.mlp\.spare\.weight"
    ):
        steps(model, 1)


def test_warmup_from_zero_is_no_fault(tiny_base: Path) -> None:
    """While the learning rate is 0, B stays zero, and A cannot have a gradient."""
    guard = steps(model_of(tiny_base), 4, learning_rate=0.0)
    assert guard.waiting
    assert all("lora_A" in name for name in guard.waiting)


def test_an_expert_may_be_unused_for_a_while(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "PATIENCE", 4)
    model = model_of(tiny_base, "full")
    model.model.layers[0].mlp.experts = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    steps(model, 3)
    with pytest.raises(UserError, match=r"after 4 steps .*experts\.0\.weight"):
        steps(model, 4)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_may_pass_but_not_stay(
    value: float, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss scaling of fp16 begins too high, and skips steps until it fits."""
    monkeypatch.setattr(guards, "PATIENCE", 3)
    model = model_of(tiny_base)
    spoil_with(value)(model)
    steps(model, 2, learning_rate=0.0)
    with pytest.raises(UserError, match=r"after 3 steps .*up_proj\.lora_B"):
        steps(model, 3, learning_rate=0.0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_cuts_nothing_off(reentrant: bool, tiny_base: Path) -> None:
    model = model_of(tiny_base)
    if reentrant:
        model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert steps(model, 2).done
