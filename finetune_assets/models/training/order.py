"""Which contexts are learned when, the same for any number of processes.

accelerate deals batches out to processes in turn, and repeats the first ones where the last round
is not full. A repeated context would count twice, so rounds are filled with contexts without loss.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Dataset, Sampler, SequentialSampler

from finetune_assets.models.tokenization.contexts import Context, Contexts
from finetune_assets.models.tokenization.render import IGNORED

FILLER_TOKENS = 16
"""Length of a context that only keeps a process busy."""


def without_loss(context: Context) -> Context:
    """Return the beginning of a context, from which nothing is learned."""
    start = Context(*(v[:FILLER_TOKENS] for v in vars(context).values()))
    labels = start.labels.copy()
    labels[:] = IGNORED
    return replace(start, labels=labels)


class FullRounds(Dataset[Context]):
    """Contexts, and after them fillers up to a multiple of `round_size`."""

    def __init__(self, contexts: Contexts, round_size: int) -> None:
        self.contexts = contexts
        self._length = math.ceil(len(contexts) / round_size) * round_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Context:
        real = index < len(self.contexts)
        return self.contexts[index] if real else without_loss(self.contexts[0])


class Shuffled(Sampler[int]):
    """Places in `rounds`: every context, shuffled as for one process, then the fillers."""

    def __init__(self, rounds: FullRounds, data_seed: int | None) -> None:
        self.rounds = rounds
        self.contexts = SeedableRandomSampler(rounds.contexts, data_seed=data_seed)

    def __iter__(self) -> Iterator[int]:
        yield from self.contexts
        yield from range(len(self.rounds.contexts), len(self.rounds))

    def __len__(self) -> int:
        return len(self.rounds)

    def set_epoch(self, epoch: int) -> None:
        """Draw another order, which depends on the epoch and the seed only."""
        self.contexts.set_epoch(epoch)


def make_sampler(rounds: FullRounds, in_order: bool, data_seed: int | None) -> Sampler[int]:
    """Return what says in which order the places in `rounds` are learned."""
    return SequentialSampler(rounds) if in_order else Shuffled(rounds, data_seed)
