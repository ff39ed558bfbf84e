"""A model's shape from its configuration, held against the models that transformers builds."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_assets.errors import UserError
from finetune_assets.models.bases.reference import BaseReference
from finetune_assets.models.planning.shape import adapted, read
from finetune_assets_tests.models.planning.published import LLAMA_7B

FAMILIES = [
    "Llama",
    "Mistral",
    "Gemma",
    "Gemma2",
    "Qwen2",
    "Qwen3",
    "GPT2",
    "GPTNeoX",
    "Phi",
    "Phi3",
    "Falcon",
    "OPT",
    "Bloom",
    "Starcoder2",
    "Olmo2",
    "StableLm",
    "Cohere2",
    "Glm",
    "SmolLM3",
    "Granite",
    "Mixtral",
    "Qwen3Moe",
    "GptOss",
    "Olmoe",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_linear_layers_are_those_of_the_model(family: str) -> None:
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D

    config = getattr(transformers, f"{family}Config")()
    shape = read(json.loads(config.to_json_string()), "config.json")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert shape.parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=1e-3)
    first = f"{shape.block}.0."
    linears = {
        name.removeprefix(first): module.weight.numel()
        for name, module in model.named_modules()
        if name.startswith(first) and isinstance(module, torch.nn.Linear | Conv1D)
    }
    assert {linear.path: linear.parameters for linear in shape.linears} == linears


def test_the_shape_of_a_folder(tiny_base: Path) -> None:
    shape = read(BaseReference(str(tiny_base), None, "a test").config(), "config.json")
    assert (shape.layers, shape.hidden, shape.tied, shape.key_value) == (2, 64, True, 32)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "mamba", "hidden_size": 8, "num_hidden_layers": 2}, "'mamba'"),
        (
            {
                "model_type": "deepseek_v3",
                "hidden_size": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "kv_lora_rank": 512,
            },
            "'deepseek_v3'",
        ),
    ],
)
def test_what_is_not_known_is_said(config: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        read(config, "config.json")


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", 7),
        (["q_proj", "v_proj"], 2),
        (["mlp.up_proj"], 1),
        (r".*\.(q|k|v|o)_proj", 4),
    ],
)
def test_targets_are_chosen_as_peft_does(targets: Any, expected: int) -> None:
    assert len(adapted(LLAMA_7B, targets)) == expected


def test_a_target_that_is_not_there_is_said() -> None:
    with pytest.raises(UserError, match=r"some of: self_attn\.q_proj"):
        adapted(LLAMA_7B, ["c_attn"])
