"""What is computed faster is the same: attention, adapters and loss against the stock ones."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune_assets.catalog.training import Training
from finetune_assets.models.adapters.loading import add_adapter, load_base
from finetune_assets.models.kernels import attention
from finetune_assets.models.kernels.attention import use_document_attention
from finetune_assets.models.kernels.lora import dequantise_base, fuse_lora
from finetune_assets.models.kernels.loss import (
    ROW_MULTIPLE,
    collate,
    collate_flat,
    collate_rows,
    supervised_nll,
)
from finetune_assets.models.kernels.norms import fuse_norms
from finetune_assets.models.planning.hardware import this_machine
from finetune_assets.models.tokenization.contexts import Context, join
from finetune_assets.models.tokenization.render import IGNORED, Tokens


def contexts(lengths: list[list[int]], seed: int = 0) -> list[Context]:
    """Of documents of these lengths, the first half of each without loss."""
    rng = np.random.default_rng(seed)
    made = []
    for group in lengths:
        documents = []
        for length in group:
            ids = rng.integers(3, 250, length).astype(np.int32)
            labels = np.where(np.arange(length) < length // 2, np.int32(IGNORED), ids)
            documents.append(Tokens(ids, labels))
        made.append(join(documents))
    return made


GROUPS = [[5, 17, 30], [1, 40], [61]]


def gradients(model: Any, batch: Any, fused: bool = True) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    nll, _ = supervised_nll(model, batch, fused=fused)
    nll.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(nll), found


def assert_same(ours: Any, stock: Any) -> None:
    assert ours[0] == pytest.approx(stock[0], rel=1e-4)
    assert ours[1].keys() == stock[1].keys()
    for name, gradient in stock[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("longest", "block"), [(1024, 256), (1024, 7), (20, 256)], ids=["whole", "blocks", "torch's"]
)
def test_documents_attend_as_each_would_alone(
    tiny_base: Path, longest: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "LONGEST_STORED", longest)
    monkeypatch.setattr(attention, "BLOCK", block)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    made = contexts(GROUPS)
    stock = gradients(model, collate_rows(made, pad_token_id=2), fused=False)
    assert use_document_attention(model)
    batch = collate(model, made, pad_token_id=2)
    assert_same(gradients(model, batch), stock)
    real = sum(len(context.input_ids) for context in made)
    assert int(batch["tokens"]) == real
    assert batch["input_ids"].shape == (1, math.ceil(real / ROW_MULTIPLE) * ROW_MULTIPLE)


@pytest.mark.parametrize("block", [256, 7])
def test_a_sliding_window_hides_what_lies_before_it(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    monkeypatch.setattr(attention, "BLOCK", block)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
    )
    model = MistralForCausalLM(config)
    made = contexts([[30]])
    stock = gradients(model, collate_rows(made, pad_token_id=2), fused=False)
    assert use_document_attention(model)
    assert_same(gradients(model, collate_flat(made)), stock)
    model.config.sliding_window = None
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    assert gradients(model, collate_flat(made))[0] != pytest.approx(stock[0], rel=1e-6)


def test_attention_of_another_kind_is_left_alone(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.config.attention_dropout = 0.1
    assert not use_document_attention(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("restored", [False, True])
def test_a_fused_adapter_computes_what_peft_does(
    tiny_base: Path, quantization: str, restored: bool
) -> None:
    training = Training.model_validate(
        {"quantization": quantization, "precision": "fp32", "lora": {"r": 4}}
    )
    from dataclasses import replace

    hardware = replace(this_machine(), dtype="float32")
    model = add_adapter(load_base(tiny_base, hardware, training), training, tiny_base)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    batch = collate_rows(contexts(GROUPS), pad_token_id=2)
    stock = gradients(model, batch)
    if restored:
        assert dequantise_base(model) == (14 if quantization == "nf4" else 0)
    assert fuse_lora(model) == 14
    assert_same(gradients(model, batch), stock)
    with model.disable_adapter(), torch.no_grad():
        off = supervised_nll(model, batch)[0]
    assert float(off) != pytest.approx(stock[0], rel=1e-5)


def test_fused_norms_compute_what_the_stock_ones_do(tiny_base: Path) -> None:
    training = Training.model_validate({"quantization": "none"})
    model = add_adapter(load_base(tiny_base, this_machine(), training), training, tiny_base)
    model.float()
    batch = collate_rows(contexts(GROUPS), pad_token_id=2)
    stock = gradients(model, batch)
    assert fuse_norms(model) == 5
    assert_same(gradients(model, batch), stock)


def test_norms_that_are_trained_or_of_another_kind_are_left_alone(tiny_base: Path) -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    assert fuse_norms(AutoModelForCausalLM.from_pretrained(tiny_base)) == 0
    assert fuse_norms(torch.nn.Sequential(GemmaRMSNorm(8)).requires_grad_(False)) == 0
    assert fuse_norms(torch.nn.Sequential(Qwen3RMSNorm(8)).requires_grad_(False)) == 1


@pytest.mark.parametrize("lora", [{"dora": True}, {"dropout": 0.1}])
def test_adapters_of_another_kind_are_left_to_peft(tiny_base: Path, lora: dict[str, Any]) -> None:
    training = Training.model_validate({"quantization": "none", "lora": lora})
    model = add_adapter(load_base(tiny_base, this_machine(), training), training, tiny_base)
    assert fuse_lora(model) == 0


def test_the_sliced_loss_is_that_of_whole_logits_also_for_a_tuned_head(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_assets.models.kernels import loss

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    batch = collate_rows(contexts(GROUPS), pad_token_id=2)
    stock = gradients(model, batch, fused=False)
    monkeypatch.setitem(loss.LOGIT_BYTES, "cpu", 16 * 4 * 300)
    assert_same(gradients(model, batch, fused=True), stock)


def test_capped_logits_stay_capped(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.01,
    )
    model = Gemma2ForCausalLM(config)
    assert not use_document_attention(model)
    nll, count = supervised_nll(model, collate_rows(contexts([[20]]), pad_token_id=2))
    assert float(nll) / count == pytest.approx(float(np.log(300)), abs=0.02)
