"""Gaps in the heap are given back when they have grown, not after each step that is large."""

from types import SimpleNamespace

import psutil
import pytest

from finetune_assets.models.kernels import heap


def test_a_step_that_needs_more_than_the_first_gives_back_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resident, given_back = [0], []
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=resident[0]))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    monkeypatch.setattr(heap, "trim", lambda: given_back.append(resident[0]))
    callback = heap.HeapTrimmer()
    for after_step in [100, 120, 130, 126, 131, 150, 158, 140, 170, 176]:
        resident[0] = after_step
        callback.on_step_end(None, None, None)
    assert given_back == [130, 158, 176]
