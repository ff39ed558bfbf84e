"""Bases are loaded where they are trained, and what does not fit them is named."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
)

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.adapters.loading import _device_map, add_adapter, load_base
from finetune_assets_tests.models.adapters.trained import (
    WHOLE,
    float32,
    recipe,
)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("ddp", {"": 1}), ("zero2", {"": 1}), ("zero3", None), ("fsdp", None)],
)
def test_each_process_loads_onto_its_own_gpu_unless_weights_are_spread(
    strategy: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    training = Training(devices={"count": 2, "strategy": strategy})
    assert _device_map(training, dataclasses.replace(float32(), device="cuda")) == expected
    assert _device_map(training, float32()) is None


def test_an_architecture_without_the_hardwares_attention_is_loaded_with_its_own(
    tmp_path: Path,
) -> None:
    tiny = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "head_dim": 16}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model("gemma2", **tiny, **layers)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load_base(tmp_path, float32(), recipe(WHOLE))
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("lora", "where", "message"),
    [
        ({"targets": ["q_prj"]}, "lora.targets", "nearest are q_proj"),
        ({"targets": ["q_proj", "k_porj"]}, "lora.targets", "'k_porj'(.|\n)*k_proj"),
        ({"targets": r".*\.q_prj"}, "lora.targets", "nearest are q_proj"),
        ({"targets": ["zzz"]}, "lora.targets", "there are act_fn, down_proj, embed_tokens"),
        ({"targets": ["self_attn"]}, "lora", "LlamaAttention(.|\n)*linear or embedding layers"),
        ({"modules_to_save": ["lm_hed"]}, "lora.modules_to_save", "nearest are lm_head"),
        ({"modules_to_save": ["q_proj"]}, "lora.modules_to_save", "quantised"),
        ({"bias": "all"}, "lora.bias", "bias: none"),
        (
            {"init": "loftq", "targets": ["lm_head"]},
            "lora.targets",
            "of 4 bits, which(.|\n)*lm_head",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(
    lora: dict[str, Any], where: str, message: str, tiny_base: Path
) -> None:
    training = recipe({"quantization": "nf4", "lora": lora})
    with pytest.raises(UserError, match=message) as caught:
        add_adapter(load_base(tiny_base, float32(), training), training, tiny_base)
    assert caught.value.where == f"training.{where}"
