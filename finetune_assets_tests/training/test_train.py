"""Training: gradients reach the adapter, it learns, resumes after a kill, stops on TERM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune_assets.catalog.training import Lora, Training
from finetune_assets.errors import UserError
from finetune_assets.tokenization.contexts import join
from finetune_assets.tokenization.render import IGNORED, Tokens
from finetune_assets.tokenization.training_set import build
from finetune_assets.training import checkpoints
from finetune_assets.training.hardware import this_machine
from finetune_assets.training.loading import add_adapter, load_base
from finetune_assets.training.loss import collate_rows, supervised_nll
from finetune_assets.training.report import Quiet
from finetune_assets.training.train import Request, train
from finetune_assets_tests.tokenization.test_training_set import write

RECIPE: dict[str, Any] = {
    "num_train_epochs": 6,
    "max_length": 64,
    "train_batch_size": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.01,
    "evals_per_epoch": 1,
    "lora": {"r": 4, "alpha": 8},
}

SCRIPT = """
import json, sys
from pathlib import Path
from finetune_assets.catalog.training import Training
from finetune_assets.training.hardware import this_machine
from finetune_assets.training.report import Quiet
from finetune_assets.training.train import Request, train
class Printing(Quiet):
    def log(self, message): print(message, flush=True)
base, data, out, recipe = sys.argv[1:]
Path(out).mkdir(exist_ok=True)
training = Training(**json.loads(recipe))
request = Request(Path(base), Path(data), Path(out), "f", training)
statistics = train(request, this_machine(), Printing())
Path(out, "statistics.json").write_text(json.dumps(statistics))
"""


@pytest.fixture
def data(project: Path, tiny_base: Path) -> Path:
    """A training set of 40 rows."""
    out = project / "set"
    out.mkdir()
    answers = [f"the answer is {i % 7}" for i in range(40)]
    splits = {
        "train": write(project / "t.parquet", answers),
        "validation": write(project / "v.parquet", answers[:8]),
    }
    build(
        tiny_base,
        splits,
        out,
        where="d.yaml",
        training=Training(max_length=64, long_rows="error"),
        progress=lambda _: None,
    )
    return out


def start(base: Path, data: Path, out: Path, **changes: Any) -> subprocess.Popen[str]:
    recipe = json.dumps({**RECIPE, **changes})
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(base), str(data), str(out), recipe],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], out: Path) -> dict[str, Any]:
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return json.loads((out / "statistics.json").read_text()) | {"stdout": stdout}


def wait_for(root: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until that many checkpoints are complete."""
    deadline = time.monotonic() + 240
    while len(list(root.glob(f"checkpoint-*/{checkpoints.COMPLETE}"))) < count:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


def test_a_run_killed_at_once_resumes_to_the_same_loss(
    project: Path, tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_STORAGE", str(project / "whole"))
    whole = finish(start(tiny_base, data, project / "a"), project / "a")
    assert whole["best_validation_loss"] < whole["validation_loss"][0][1]

    monkeypatch.setenv("FINETUNE_STORAGE", str(project / "killed"))
    root = project / "killed" / "checkpoints" / "f"
    process = start(tiny_base, data, project / "b")
    wait_for(root, 2, process)
    process.kill()
    process.wait()
    # What a kill in the middle of saving leaves: it must not be resumed from.
    (root / "checkpoint-9999").mkdir()
    resumed = finish(start(tiny_base, data, project / "b"), project / "b")
    assert resumed["resumed_from_step"] > 0
    assert f"resuming from step {resumed['resumed_from_step']} of" in resumed["stdout"]
    assert resumed["steps"] == whole["steps"]
    assert resumed["best_validation_loss"] == pytest.approx(whole["best_validation_loss"], rel=0.01)
    weights = [load_file(project / f / "adapter_model.safetensors") for f in ("a", "b")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0.02, atol=1e-3)


def test_term_writes_a_checkpoint_and_leaves(project: Path, tiny_base: Path, data: Path) -> None:
    root = project / "storage" / "checkpoints" / "f"
    process = start(tiny_base, data, project / "a", num_train_epochs=400, evals_per_epoch=0.01)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step "):
        assert process.poll() is None, process.stderr and process.stderr.read()
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    kept = checkpoints.latest(root)
    assert kept is not None
    assert (kept / "optimizer.pt").exists()


def train_here(base: Path, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    recipe = Training(**{**RECIPE, **changes})
    return train(Request(base, data, out, out.name, recipe), this_machine(), Quiet())


def test_a_loss_that_is_not_finite_stops_the_run(
    project: Path, tiny_base: Path, data: Path
) -> None:
    with pytest.raises(UserError, match=r"not finite(.|\n)*lower `training.learning_rate`"):
        train_here(tiny_base, data, project / "a", learning_rate=1e30, max_grad_norm=1e30)
