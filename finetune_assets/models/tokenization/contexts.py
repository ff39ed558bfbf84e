"""Training examples on disk: documents written as a stream, contexts read by memory map.

A split is a folder of one-dimensional .npy files. Tokens are stored once, in the order of the
documents; a context is a list of documents, so that packing moves no token.

- `tokens` (int32) and `learned` (bool, whether the token carries loss), for all documents
- `documents` (int64): where in `tokens` each document begins, and the end
- `supervised` (int32): tokens with loss of each document
- `members` (int64): documents, context by context
- `contexts` (int64): where in `members` each context begins, and the end
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from finetune_assets.errors import UserError
from finetune_assets.models.tokenization.render import IGNORED, Tokens


@dataclass
class Context:
    """One training example; int32 arrays of the same length."""

    input_ids: np.ndarray
    labels: np.ndarray
    """The token itself where it carries loss, else IGNORED."""
    position_ids: np.ndarray
    """Restart at 0 with each document, which is what isolates it from its neighbours."""


def join(documents: Sequence[Tokens]) -> Context:
    """Put documents one after another; the first token of each has no loss."""
    labels = np.concatenate([d.labels for d in documents], dtype=np.int32)
    labels[np.cumsum([0, *(len(d.input_ids) for d in documents[:-1])])] = IGNORED
    return Context(
        np.concatenate([d.input_ids for d in documents], dtype=np.int32),
        labels,
        np.concatenate([np.arange(len(d.input_ids), dtype=np.int32) for d in documents]),
    )


class Contexts(Sequence[Context]):
    """The contexts of a split; nothing but the light columns is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Map the files of a split; a UserError says that they do not belong together."""
        self._folder = folder
        self._tokens, self._learned, self._documents, self._supervised = (
            _mapped(folder, name) for name in ("tokens", "learned", "documents", "supervised")
        )
        self._members, self._contexts = (_mapped(folder, name) for name in ("members", "contexts"))
        count, documents = len(self._tokens), len(self._supervised)
        ends = (self._documents[-1], self._contexts[-1], len(self._documents) - 1)
        if ends != (count, len(self._members), documents) or count != len(self._learned):
            raise UserError(
                str(folder), "its files do not belong together", "materialize training_sets again"
            )

    @classmethod
    def open(cls, folder: Path, split: str) -> "Contexts":
        """Open a split of a training set; it costs no more for a large one."""
        return cls(folder / split)

    def __reduce__(self) -> tuple[Any, ...]:
        return Contexts, (self._folder,)  # a process that gets it maps the files itself

    def __len__(self) -> int:
        return len(self._contexts) - 1

    @overload
    def __getitem__(self, index: int) -> Context: ...
    @overload
    def __getitem__(self, index: slice) -> list[Context]: ...
    def __getitem__(self, index: int | slice) -> Context | list[Context]:
        places = range(len(self))[index]
        return self._at(places) if isinstance(places, int) else [self._at(p) for p in places]

    def _at(self, place: int) -> Context:
        members = self._members[self._contexts[place] : self._contexts[place + 1]]
        spans = [slice(self._documents[m], self._documents[m + 1]) for m in members]
        tokens = np.concatenate([self._tokens[span] for span in spans])
        learned = np.concatenate([self._learned[span] for span in spans])
        positions = np.concatenate([np.arange(s.stop - s.start, dtype=np.int32) for s in spans])
        return Context(tokens, np.where(learned, tokens, np.int32(IGNORED)), positions)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each context (int64)."""
        return self._sums(np.diff(self._documents))

    @cached_property
    def supervised(self) -> np.ndarray:
        """Tokens with loss of each context (int64)."""
        return self._sums(self._supervised)

    def _sums(self, of_documents: np.ndarray) -> np.ndarray:
        running = np.concatenate([[0], np.cumsum(of_documents[self._members], dtype=np.int64)])
        return np.diff(running[self._contexts])


class Writer:
    """A writer that appends documents to a split, and at the end says which share a context."""

    def __init__(self, tokens: "GrowingArray", learned: "GrowingArray", folder: Path) -> None:
        self._tokens, self._learned, self._folder = tokens, learned, folder
        self._lengths: list[np.ndarray] = []
        self._supervised: list[np.ndarray] = []

    def append(self, tokens: np.ndarray, learned: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents that lie one after another, of `lengths` tokens each (at least 1).

        The first token of a document has nothing to be predicted from, so it is never learned.
        """
        if not len(lengths):
            return
        starts = np.concatenate([[0], np.cumsum(lengths[:-1])])
        learned = learned.copy()
        learned[starts] = False
        self._tokens.append(tokens)
        self._learned.append(learned)
        self._lengths.append(lengths.astype(np.int32))
        self._supervised.append(np.add.reduceat(learned, starts, dtype=np.int32))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document so far (int32)."""
        return np.concatenate([np.empty(0, np.int32), *self._lengths])

    @property
    def supervised(self) -> np.ndarray:
        """Tokens with loss of each document so far (int32)."""
        return np.concatenate([np.empty(0, np.int32), *self._supervised])

    def finish(self, members: np.ndarray, contexts: np.ndarray) -> None:
        """Say which documents share a context; see the module's description."""
        ends = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        light = {"documents": ends, "supervised": self.supervised}
        light |= {"members": members.astype(np.int64), "contexts": contexts.astype(np.int64)}
        for name, values in light.items():
            np.save(self._folder / f"{name}.npy", values)


@contextmanager
def write_contexts(folder: Path, split: str) -> Iterator[Writer]:
    """Give a writer of a split, whose `finish` is to be called before the block ends."""
    target = folder / split
    target.mkdir(parents=True)
    with ExitStack() as files:
        tokens = files.enter_context(GrowingArray(target / "tokens.npy", np.dtype(np.int32)))
        learned = files.enter_context(GrowingArray(target / "learned.npy", np.dtype(np.bool_)))
        yield Writer(tokens, learned, target)


class GrowingArray:
    """A one-dimensional .npy file that is appended to, so that memory stays what a batch takes."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._path, self._dtype, self._size = path, dtype, 0

    def __enter__(self) -> "GrowingArray":
        self._file = self._path.open("wb")
        self._write_header()
        return self

    def append(self, values: np.ndarray) -> None:
        """Write values behind those that are there."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._size += len(values)

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        """Write the header; numpy leaves room in it for the length, so its size stays the same."""
        description = np.lib.format.dtype_to_descr(self._dtype)
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": description, "fortran_order": False, "shape": (self._size,)}
        )


def _mapped(folder: Path, name: str) -> np.ndarray:
    # A view that is no np.memmap: slicing one costs ten times as much.
    return np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray)
