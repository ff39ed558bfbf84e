"""The loss is that of full logits, and its gradients reach the adapter."""

from pathlib import Path

import numpy as np
import torch

from finetune_assets.catalog.training import Lora, Training
from finetune_assets.models.adapters.loading import add_adapter, load_base
from finetune_assets.models.kernels.loss import collate_rows, supervised_nll
from finetune_assets.models.planning.hardware import this_machine
from finetune_assets.models.tokenization.contexts import join
from finetune_assets.models.tokenization.render import IGNORED, Tokens


def test_evaluating_first_leaves_the_gradients_what_they_are(tiny_base: Path) -> None:
    """Holds bitsandbytes to one weight layout: its repacking on AVX512-BF16 loses gradients."""
    ids = np.array([5, 6, 7, 8] * 8)
    batch = collate_rows([join([Tokens(ids, ids)])], pad_token_id=2)

    def gradients(evaluate_first: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        training = Training(lora=Lora(r=4, alpha=8))
        model = add_adapter(load_base(tiny_base, this_machine(), training), training, tiny_base)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, which would hide the gradient of lora_A
                torch.nn.init.normal_(parameter, std=0.02)
        if evaluate_first:
            model.eval()
            with torch.no_grad():
                supervised_nll(model, batch)
        model.train()
        supervised_nll(model, batch)[0].backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    fresh, after = gradients(False), gradients(True)
    assert len(fresh) == len(after) == 2 * 7 * 2
    for name, gradient in fresh.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(after[name], gradient, rtol=0.05, atol=1e-3)


def test_the_loss_is_that_of_full_logits(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    contexts = [
        join([Tokens(np.array([5, 6, 7, 8, 9]), np.array([IGNORED, IGNORED, 7, 8, 9]))]),
        join([Tokens(np.array([9, 8, 7]), np.array([IGNORED, 8, IGNORED]))]),
    ]
    nll, count = supervised_nll(model, collate_rows(contexts, pad_token_id=2))
    expected = torch.tensor(0.0)
    for c in contexts:
        logits = model(input_ids=torch.from_numpy(c.input_ids).long()[None]).logits[0, :-1]
        targets = torch.from_numpy(c.labels[1:]).long()
        expected = expected + torch.nn.functional.cross_entropy(
            logits, targets, ignore_index=IGNORED, reduction="sum"
        )
    assert count == 4
    torch.testing.assert_close(nll, expected, rtol=1e-4, atol=1e-4)
