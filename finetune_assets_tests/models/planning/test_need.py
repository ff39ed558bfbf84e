"""The memory of this project's own runs on a CPU: what was measured, beside what is foretold."""

from typing import Any

import pytest

from finetune_assets.models.planning.hardware import Machine, resolve
from finetune_assets.models.planning.need import Counts, Target, need
from finetune_assets.models.planning.shape import read
from finetune_assets_tests.models.planning.published import GB, recipe

SMOLLM2 = read(
    {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "config.json",
)
"""SmolLM2-135M-Instruct."""

COUNTS = Counts(
    rows=974,
    contexts=375,
    tokens=381_431,
    supervised=211_557,
    longest=3306,
    validation_tokens=4204,
    exact=True,
)
"""A thousand rows of instructions, of which some are cut at 1024 tokens."""

WHOLE: dict[str, Any] = {"method": "full", "quantization": "none"}


@pytest.mark.parametrize(
    ("keys", "micro_batch", "accumulation", "measured"),
    [
        ({}, 1, 2, 2.87),
        ({}, 4, 1, 6.40),
        ({"quantization": "none"}, 1, 2, 2.63),
        ({"quantization": "none"}, 4, 1, 6.35),
        (WHOLE, 1, 2, 5.13),
        (WHOLE, 4, 1, 9.22),
        ({"gradient_checkpointing": True}, 4, 1, 2.14),
        ({"lora": {"dropout": 0.1}}, 2, 2, 6.24),
        ({"torch_compile": True}, 2, 2, 4.25),
    ],
)
def test_a_run_needs_what_was_measured(
    keys: dict[str, Any], micro_batch: int, accumulation: int, measured: float
) -> None:
    """`peak_rss_gb` of the adapters of such runs: contexts of 1024 tokens, bf16, two cores with
    AVX512-BF16. The promise is a quarter."""
    training = recipe(
        max_steps=3,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        **keys,
    )
    machine = Machine(cuda=False, name="CPU", memory_gb=24, cores=2, bf16=True)
    found = need(SMOLLM2, training, Target(resolve(machine), 24 * 2**30), COUNTS)
    assert found.memory.total / GB == pytest.approx(measured, rel=0.20)
