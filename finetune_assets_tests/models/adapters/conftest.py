"""Bases, and their training for a few steps."""

from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)

from finetune_assets.catalog.training import Training
from finetune_assets.models.adapters.loading import add_adapter, load_base
from finetune_assets.models.adapters.saving import INITIAL, save_adapter
from finetune_assets.models.training.guards import GradientGuard
from finetune_assets_tests.models.adapters.trained import BATCH, Train, Trained, float32


@pytest.fixture(scope="session")
def biased_base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """The tiny Llama with biases on every linear layer, and its head a weight of its own."""
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(
        tiny_base, attention_bias=True, mlp_bias=True, tie_word_embeddings=False
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("biased")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def base(request: pytest.FixtureRequest, tiny_base: Path, biased_base: Path) -> Path:
    kind = request.node.callspec.params.get("kind", "") if hasattr(request.node, "callspec") else ""
    return biased_base if "bias" in kind else tiny_base


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Six steps; the checkpoints' folder and the artifact are new unless given."""

    def run(base: Path, training: Training, name: str = "a", root: Path | None = None) -> Trained:
        initial = (root or tmp_path / f"{name}-checkpoints") / INITIAL
        torch.manual_seed(training.seed)
        model = add_adapter(load_base(base, float32(), training), training, base, initial)
        model.train()
        guard, losses = GradientGuard(model), []
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.0)
        for _ in range(6):
            loss = model(input_ids=BATCH, labels=BATCH, use_cache=False).loss
            loss.backward()
            guard.check()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            assert guard.done or len(losses) == 1, f"no gradient yet: {list(guard.waiting)}"
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        save_adapter(model, out, training, base, initial)
        return Trained(model, out, losses)

    return run
