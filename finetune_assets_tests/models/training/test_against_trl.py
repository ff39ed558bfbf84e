"""On the same rows, seed and settings the adapter is as good as a plain TRL script's."""

from pathlib import Path

import pytest

from benchmarks.trl_parity import ours, plain_trl, settings, validation_loss


def test_the_validation_loss_is_that_of_plain_trl(project: Path, tiny_base: Path) -> None:
    conversations = [
        [
            {"role": "user", "content": f"what is question {i}?"},
            {"role": "assistant", "content": f"the answer is {i % 7}"},
        ]
        for i in range(60)
    ]
    given = settings(epochs=4, batch=4, learning_rate=5e-3, max_length=64)
    lora = {"r": 4, "alpha": 8}
    training, held_out = conversations[:48], conversations[48:]
    losses = [
        validation_loss(tiny_base, run(tiny_base, training, given, lora, project), held_out)
        for run in (plain_trl, ours)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] < 5.0, "neither has learned anything"
