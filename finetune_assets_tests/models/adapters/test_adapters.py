"""Every kind of adapter: it learns, and what is saved is what was trained, on the original base."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
)

from finetune_assets.models.adapters.loading import add_adapter, load_base
from finetune_assets.models.bases.weights import stored_dtype
from finetune_assets.models.merging.merge import merge, parity
from finetune_assets.models.planning.hardware import this_machine
from finetune_assets.models.records import TOLERANCE
from finetune_assets_tests.models.adapters.trained import (
    BATCH,
    KINDS,
    QUANTISATION,
    ROUNDING,
    WHOLE,
    Train,
    difference,
    float32,
    loaded,
    logits,
    recipe,
)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_what_is_saved_is_what_was_trained(
    kind: str, base: Path, train: Train, tmp_path: Path
) -> None:
    training = recipe(KINDS[kind])
    trained = train(base, training)
    assert trained.losses[-1] < trained.losses[0] - 0.02
    expected = logits(trained.model)
    found = difference(logits(loaded(base, trained.out)), expected)
    assert found <= (ROUNDING if training.quantization == "none" else QUANTISATION)
    untrained = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert difference(logits(untrained), expected) > 10 * ROUNDING
    if training.quantization != "none" and training.lora.init == "default":
        again = PeftModel.from_pretrained(load_base(base, float32(), training), trained.out)
        assert difference(logits(again), expected) <= ROUNDING

    merged = tmp_path / "merged"
    merged.mkdir()
    merge(base, trained.out, merged)
    result = parity(base, trained.out, merged, [BATCH[0].tolist()])
    assert result["relative_difference"] <= TOLERANCE[stored_dtype(merged)]
    assert result["top_token_disagreements"] == 0


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa", "loftq", "int8", "full"])
def test_the_same_seed_gives_the_same_bytes(kind: str, base: Path, train: Train) -> None:
    first, second = (train(base, recipe(KINDS[kind]), name).out for name in ("a", "b"))
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()}
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_another_seed_gives_another_adapter(tiny_base: Path, train: Train) -> None:
    first, second = (train(tiny_base, recipe({**WHOLE, "seed": i}), str(i)).out for i in (0, 1))
    name = "adapter_model.safetensors"
    assert (first / name).read_bytes() != (second / name).read_bytes()


def test_all_linear_is_every_linear_layer_but_the_head(tiny_base: Path) -> None:
    training = recipe(WHOLE)
    model = add_adapter(load_base(tiny_base, float32(), training), training, tiny_base)
    trained = {n.split(".layers.")[1] for n, p in model.named_parameters() if p.requires_grad}
    layers = [f"self_attn.{x}_proj" for x in "qkvo"] + [
        f"mlp.{x}_proj" for x in ("gate", "up", "down")
    ]
    assert trained == {
        f"{i}.{layer}.lora_{x}.default.weight" for i in (0, 1) for layer in layers for x in "AB"
    }


def test_an_adapter_names_nothing_of_this_machine(
    tiny_base: Path, train: Train, tmp_path: Path
) -> None:
    out = train(tiny_base, recipe(KINDS["pissa"])).out
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    names = json.loads((out / "adapter_config.json").read_text())["target_modules"]
    assert len(names) == 14
    assert names == sorted(names), "PEFT keeps a set, which every process orders differently"
    for path in out.iterdir():
        assert str(tiny_base).encode() not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


def test_what_is_trained_is_float32(tiny_base: Path) -> None:
    hardware = dataclasses.replace(this_machine(), dtype="bfloat16")
    for kind in ("head", "dora", "pissa", "nf4", "full"):
        training = recipe(KINDS[kind])
        model = add_adapter(load_base(tiny_base, hardware, training), training, tiny_base)
        trained = {p.dtype for p in model.parameters() if p.requires_grad}
        assert trained == {torch.float32}, kind


def test_a_model_tuned_whole_keeps_the_dtype_of_its_base(
    tiny_base: Path, train: Train, tmp_path: Path
) -> None:
    base = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16).save_pretrained(base)
    trained = train(base, recipe(KINDS["full"]))
    assert {t.dtype for t in load_file(trained.out / "model.safetensors").values()} == {
        torch.bfloat16
    }
    model = AutoModelForCausalLM.from_pretrained(trained.out, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache, "the base's configuration, not that of training"
    assert difference(logits(model.float()), logits(trained.model)) < TOLERANCE["BF16"]
