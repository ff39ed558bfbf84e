"""Training sets on disk: read back as written, however large, and never mixed up."""

import pickle
import sys
from pathlib import Path
from types import FrameType

import numpy as np
import psutil
import pytest

from finetune_assets.errors import UserError
from finetune_assets.models.tokenization.contexts import Context, Contexts, write_contexts
from finetune_assets.models.tokenization.render import IGNORED


def write(folder: Path) -> None:
    """Two batches of documents: (1 2 3), (4 5) and (6 7); the last two share a context."""
    with write_contexts(folder, "train") as writer:
        writer.append(np.arange(1, 6), np.array([1, 0, 1, 1, 1], bool), np.array([3, 2]))
        writer.append(np.array([], int), np.array([], bool), np.array([], int))
        writer.append(np.array([6, 7]), np.array([True, True]), np.array([2]))
        writer.finish(np.array([0, 1, 2]), np.array([0, 1, 3]))


def lists(context: Context) -> list[list[int]]:
    return [context.input_ids.tolist(), context.labels.tolist(), context.position_ids.tolist()]


def test_contexts_are_read_back_as_written(tmp_path: Path) -> None:
    write(tmp_path)
    contexts = Contexts.open(tmp_path, "train")
    assert [lists(c) for c in contexts] == [
        [[1, 2, 3], [IGNORED, IGNORED, 3], [0, 1, 2]],
        [[4, 5, 6, 7], [IGNORED, 5, IGNORED, 7], [0, 1, 0, 1]],
    ]
    assert {v.dtype for c in contexts for v in vars(c).values()} == {np.dtype(np.int32)}
    assert contexts.lengths.tolist() == [3, 4]
    assert contexts.supervised.tolist() == [1, 2]
    assert [lists(c) for c in contexts[-1:]] == [lists(contexts[1])]
    assert lists(contexts[-1]) == lists(contexts[1])
    with pytest.raises(IndexError):
        contexts[2]


def test_another_process_gets_the_place_and_not_the_tokens(tmp_path: Path) -> None:
    write(tmp_path)
    contexts = Contexts.open(tmp_path, "train")
    assert len(contexts.lengths) == 2
    sent = pickle.dumps(contexts)
    assert len(sent) < 500
    assert lists(pickle.loads(sent)[1]) == lists(contexts[1])


def write_large(folder: Path, batches: int) -> None:
    """Write 10,000 documents of 20 tokens a batch; ten of them share a context."""
    count = batches * 10_000
    with write_contexts(folder, "train") as writer:
        batch = np.ones(20 * 10_000, np.int32)
        for _ in range(batches):
            writer.append(batch, batch > 0, np.full(10_000, 20))
        writer.finish(np.arange(count), np.arange(0, count + 1, 10))


def calls_to_open(folder: Path) -> int:
    """Count the calls of functions by which contexts are opened and the first one is read."""
    calls = 0

    def count(_: FrameType, event: str, __: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        Contexts.open(folder, "train")[0]
    finally:
        sys.setprofile(None)
    return calls


def test_a_million_rows_open_like_a_few(tmp_path: Path) -> None:
    write_large(tmp_path / "few", 1)
    write_large(tmp_path / "many", 100)
    calls_to_open(tmp_path / "few")  # what is imported at the first time is not of opening
    few, many = calls_to_open(tmp_path / "few"), calls_to_open(tmp_path / "many")
    assert many < few + 1000, "a look at each context would be 99,000 calls more"
    before = psutil.Process().memory_info().rss
    contexts = Contexts.open(tmp_path / "many", "train")
    assert len(contexts[77_777].input_ids) == 200
    assert psutil.Process().memory_info().rss - before < 20e6
    assert (len(contexts), contexts.lengths.sum()) == (100_000, 20 * 1_000_000)


@pytest.mark.parametrize(
    "name", ["tokens", "learned", "documents", "supervised", "members", "contexts"]
)
def test_files_that_do_not_belong_together_are_an_error(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    file = tmp_path / "train" / f"{name}.npy"
    np.save(file, np.load(file)[:-1])
    with pytest.raises(UserError, match="do not belong together"):
        Contexts.open(tmp_path, "train")
