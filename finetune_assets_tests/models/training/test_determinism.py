"""The adapter depends on what a recipe teaches, not on what is looked at on the way."""

from pathlib import Path
from typing import Any

import pytest

from finetune_assets.models.kernels.loss import collate, supervised_nll
from finetune_assets.models.tokenization.contexts import Contexts
from finetune_assets.models.training import trainer
from finetune_assets_tests.models.running import RANDOM, Cut, adapter, cutting, train_here

LAST = {**RANDOM, "num_train_epochs": 2, "load_best_model_at_end": False}


def test_looking_at_a_training_does_not_change_it(
    project: Path, tiny_base: Path, data: Path
) -> None:
    train_here(tiny_base, data, project / "plain", **LAST)
    seen = train_here(
        tiny_base,
        data,
        project / "seen",
        **{**LAST, "evals_per_epoch": 10, "save_steps": 3, "logging_steps": 1},
        sample_prompts=["what is this?", "and that?"],
        sample_max_new_tokens=4,
    )
    assert len(seen["validation_loss"]) == 10
    assert len(seen["samples"]) == 20
    assert all(sample["prompt"] and sample["step"] for sample in seen["samples"])
    assert adapter(project / "seen") == adapter(project / "plain")


def test_another_seed_is_another_training(project: Path, tiny_base: Path, data: Path) -> None:
    for seed in (0, 1):
        train_here(tiny_base, data, project / str(seed), seed=seed, **LAST)
    assert adapter(project / "0") != adapter(project / "1")


@pytest.fixture
def learned(data: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Places of the contexts, in the order in which they are learned."""
    contexts = Contexts.open(data, "train")
    places = {context.input_ids.tobytes(): place for place, context in enumerate(contexts)}
    assert len(places) == len(contexts)
    order: list[int] = []

    def noted(model: Any, batch: Any, **how: Any) -> Any:
        order.extend(places[context.input_ids.tobytes()] for context in batch)
        return collate(model, batch, **how)

    monkeypatch.setattr(trainer, "collate", noted)
    return order


@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "shuffled"])
def test_a_resumed_run_learns_what_is_left_in_the_same_order(
    in_order: bool,
    learned: list[int],
    project: Path,
    tiny_base: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = {"num_train_epochs": 3, "in_order": in_order, "save_steps": 4}
    recipe["load_best_model_at_end"] = False
    train_here(tiny_base, data, project / "whole", **recipe)
    whole = learned.copy()
    epochs = [whole[start : start + 20] for start in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert [epoch == list(range(20)) for epoch in epochs] == [in_order] * 3
    assert (epochs[0] == epochs[1]) == in_order
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "supervised_nll", cutting(supervised_nll, 23))
        with pytest.raises(Cut):
            train_here(tiny_base, data, project / "a", **recipe)
    learned.clear()
    resumed = train_here(tiny_base, data, project / "a", **recipe)["resumed_from_step"]
    assert resumed == 8
    assert learned == whole[resumed * 4 :]
    assert adapter(project / "a") == adapter(project / "whole")


def test_smaller_batches_learn_in_the_same_order(
    learned: list[int], project: Path, tiny_base: Path, data: Path
) -> None:
    """As a machine with less memory makes them, or one whose memory has run out."""
    train_here(tiny_base, data, project / "a", num_train_epochs=2)
    before = learned.copy()
    learned.clear()
    train_here(tiny_base, data, project / "b", num_train_epochs=2, per_device_train_batch_size=1)
    assert learned == before


KINDS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "quantization": "none", "learning_rate": 1e-3},
    "neftune": {"neftune_noise_alpha": 5},
    "dora": {"lora": {"r": 4, "dora": True}},
    "dropout, rslora": {"lora": {"r": 4, "dropout": 0.1, "rslora": True}},
    "pissa": {"quantization": "none", "lora": {"r": 4, "init": "pissa"}},
    "loftq": {"lora": {"r": 4, "init": "loftq"}},
    "head": {
        "quantization": "none",
        "learning_rate": 1e-3,
        "lora": {"r": 4, "modules_to_save": ["lm_head"]},
    },
    "some layers": {"lora": {"r": 4, "targets": ["q_proj", "v_proj"]}},
    "none": {"quantization": "none"},
    "fp4": {"quantization": "fp4", "double_quantization": False},
    "int8": {"quantization": "int8"},
    "fp32": {"precision": "fp32"},
    "recomputed": {"gradient_checkpointing": True},
    "rows": {"packing": False},
    "adamw_8bit": {"optim": "adamw_8bit"},
    "lion_32bit": {"optim": "lion_32bit", "learning_rate": 1e-3},
    "adafactor": {"optim": "adafactor"},
    "sgd": {"optim": "sgd", "arguments": {"optim_args": "momentum=0.9"}},
    "plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", "warmup_steps": 0},
    "stable": {
        "lr_scheduler_type": "warmup_stable_decay",
        "arguments": {"lr_scheduler_kwargs": {"num_decay_steps": 1}},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_recipe_learns_and_resumes_to_the_same_bytes(
    kind: str, project: Path, tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**KINDS[kind], "max_steps": 4, "save_steps": 1, "eval_steps": 2}
    recipe["load_best_model_at_end"] = False
    whole = train_here(tiny_base, data, project / "whole", **recipe)
    losses = [value for _, value in whole["validation_loss"]]
    assert losses[1] < losses[0]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "supervised_nll", cutting(supervised_nll, 6))
        with pytest.raises(Cut):
            train_here(tiny_base, data, project / "a", **recipe)
    resumed = train_here(tiny_base, data, project / "a", **recipe)
    assert resumed["resumed_from_step"] == 2
    assert resumed["validation_loss"] == whole["validation_loss"]
    assert made(project / "a") == made(project / "whole")


def made(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*") if path.is_file()}
