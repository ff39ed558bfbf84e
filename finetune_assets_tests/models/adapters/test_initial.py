"""What PiSSA and LoftQ begin with: the base as it is, also when a run is resumed."""

from pathlib import Path

import pytest
import torch
from peft.utils.integrations import dequantize_module_weight
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from finetune_assets.models.adapters.loading import add_adapter, load_base
from finetune_assets.models.adapters.saving import INITIAL, save_adapter
from finetune_assets_tests.models.adapters.trained import (
    KINDS,
    QUANTISATION,
    ROUNDING,
    difference,
    float32,
    loaded,
    logits,
    recipe,
)


@pytest.mark.parametrize("kind", ["pissa", "loftq"])
def test_a_resumed_run_begins_from_the_same_matrices(
    kind: str, tiny_base: Path, tmp_path: Path
) -> None:
    training, kept = recipe(KINDS[kind]), tmp_path / "checkpoints" / INITIAL
    first = add_adapter(load_base(tiny_base, float32(), training), training, tiny_base, kept)
    # Another machine's SVD would find other matrices: what is kept counts, not the seed.
    other = training.model_copy(update={"seed": 7})
    again = add_adapter(load_base(tiny_base, float32(), other), other, tiny_base, kept)
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert [path.name for path in kept.parent.iterdir()] == [INITIAL]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "pissa" in kind or "loftq" in kind])
def test_before_training_the_adapter_leaves_the_original_base_as_it_is(
    kind: str, tiny_base: Path, tmp_path: Path
) -> None:
    training, kept = recipe(KINDS[kind]), tmp_path / INITIAL
    model = add_adapter(load_base(tiny_base, float32(), training), training, tiny_base, kept)
    save_adapter(model, tmp_path, training, tiny_base, kept)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    tolerance = ROUNDING if "dora" not in kind or "pissa" in kind else QUANTISATION
    assert difference(logits(loaded(tiny_base, tmp_path)), logits(base)) <= tolerance


def test_pissa_begins_as_the_base_with_its_principal_part_in_the_adapter(tiny_base: Path) -> None:
    training = recipe(KINDS["pissa"])
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = add_adapter(load_base(tiny_base, float32(), training), training, tiny_base)
    assert difference(logits(model), logits(base)) < ROUNDING
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    weight = base.model.layers[0].self_attn.q_proj.weight
    singular = torch.linalg.svdvals(weight)
    part = torch.linalg.svdvals(layer.get_delta_weight("default"))
    torch.testing.assert_close(part[:4], singular[:4], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(
        torch.linalg.svdvals(layer.base_layer.weight)[:4], singular[4:8], rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["loftq", "loftq, rslora, dora"])
def test_loftq_begins_nearer_to_the_base_than_4_bits_alone(kind: str, tiny_base: Path) -> None:
    loftq = recipe({**KINDS[kind], "lora": {**KINDS[kind]["lora"], "r": 32}})
    base = logits(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32))
    plain = logits(load_base(tiny_base, float32(), recipe(KINDS["nf4"])))
    repaired = add_adapter(load_base(tiny_base, float32(), loftq), loftq, tiny_base)
    assert difference(logits(repaired), base) < 0.6 * difference(plain, base)


@pytest.mark.parametrize("kind", ["pissa, rslora, dora", "loftq, rslora, dora"])
def test_doras_magnitude_is_that_of_the_weight_that_training_begins_from(
    kind: str, tiny_base: Path
) -> None:
    training = recipe(KINDS[kind])
    model = add_adapter(load_base(tiny_base, float32(), training), training, tiny_base)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        weight = dequantize_module_weight(layer.base_layer) + layer.get_delta_weight("default")
    magnitude = layer.lora_magnitude_vector["default"].weight.detach()
    torch.testing.assert_close(magnitude, weight.norm(dim=1), rtol=1e-5, atol=1e-6)


def test_loftq_knows_layers_that_are_stored_transposed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=2, initializer_range=0.2)
    ).save_pretrained(tmp_path)
    loftq = recipe({"quantization": "nf4", "lora": {"init": "loftq", "r": 32}})
    base = logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    plain = logits(load_base(tmp_path, float32(), loftq))
    repaired = add_adapter(load_base(tmp_path, float32(), loftq), loftq, tmp_path)
    assert difference(logits(repaired), base) < 0.6 * difference(plain, base)
