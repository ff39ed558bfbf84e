"""A run that is stopped or killed goes on, and ends with the very bytes of one that was not."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_assets.storage import checkpoints
from finetune_assets_tests.models.running import (
    CURVES,
    RANDOM,
    adapter,
    at,
    start,
    train_here,
)

pytestmark = pytest.mark.slow

Made = tuple[bytes, dict[str, Any]]
Whole = Callable[..., Made]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, data: Path) -> Whole:
    """Adapter and statistics of a run of a recipe that nothing cuts off."""
    known: dict[str, Made] = {}

    def made(**changes: Any) -> Made:
        if str(changes) not in known:
            out = tmp_path_factory.mktemp("whole")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("FINETUNE_STORAGE", str(out / "storage"))
                statistics = train_here(tiny_base, data, out, **changes)
            known[str(changes)] = adapter(out), statistics
        return known[str(changes)]

    return made


def assert_same(out: Path, statistics: dict[str, Any], whole: Made) -> None:
    for name in CURVES:
        expected = whole[1][name]
        assert statistics[name] == (
            [list(point) for point in expected] if isinstance(expected, list) else expected
        ), name
    assert adapter(out) == whole[0]


FORWARD = "finetune_assets.models.training.trainer:supervised_nll"
VALIDATION = "finetune_assets.models.kernels.loss:supervised_nll"


@pytest.mark.parametrize(
    ("changes", "place", "count", "step"),
    [
        ({}, FORWARD, 24, 12),
        (RANDOM, FORWARD, 23, 11),  # in the middle of a step
        (RANDOM, FORWARD, 21, 10),  # in the first step of an epoch
        (RANDOM, VALIDATION, 3, 10),  # in the second validation loss
    ],
    ids=["between steps", "within a step", "within the first of an epoch", "while validating"],
)
def test_term_leaves_a_checkpoint_of_the_last_whole_step(
    changes: dict[str, Any],
    place: str,
    count: int,
    step: int,
    project: Path,
    tiny_base: Path,
    data: Path,
    whole: Whole,
) -> None:
    changes = {**changes, "save_steps": 7}
    running = start(tiny_base, data, project / "a", at(place, count, signal.SIGTERM), **changes)
    assert running.code() == 128 + signal.SIGTERM, running.said
    left = list(running.root.glob("checkpoint-*"))
    assert max(map(checkpoints.step_of, left)) == step
    assert all((path / checkpoints.COMPLETE).exists() for path in left)
    again = start(tiny_base, data, project / "a", **changes)
    statistics = again.finish()
    assert f"resuming from step {step} of 30" in again.said
    assert_same(project / "a", statistics, whole(**changes))


KILLS = [
    (FORWARD, 15, None),
    ("torch:save", 2, 5),  # some files of checkpoint-10 are there
    ("finetune_assets.storage.checkpoints:mark_complete", 1, 5),  # all of them
    (VALIDATION, 3, 5),
    ("os:unlink", 3, 10),  # checkpoint-5 is half removed
    ("finetune_assets.models.training.attempt:save_adapter", 1, 15),  # after the last step
]
"""Where a run is killed, and the step from which that attempt had gone on."""


@pytest.mark.parametrize("changes", [{}, RANDOM], ids=["fused", "random"])
def test_a_run_that_is_killed_again_and_again_ends_the_same(
    changes: dict[str, Any], project: Path, tiny_base: Path, data: Path, whole: Whole
) -> None:
    changes = {**changes, "save_total_limit": 1, "load_best_model_at_end": False}
    for place, count, step in KILLS:
        spoil = at(place, count, signal.SIGKILL)
        running = start(tiny_base, data, project / "a", spoil, **changes)
        assert running.code() == -signal.SIGKILL, running.said
        assert (f"from step {step} of 30" if step else "training 30 steps") in running.said
    last = start(tiny_base, data, project / "a", **changes)
    statistics = last.finish()
    assert "resuming from step 30 of 30" in last.said
    assert_same(project / "a", statistics, whole(**changes))
