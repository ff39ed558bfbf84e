"""Small training sets of the tiny base."""

from pathlib import Path

from finetune_assets.catalog.training import Training
from finetune_assets.models.tokenization.training_set import build
from finetune_assets_tests.models.tokenization.splits import write


def make(base: Path, folder: Path, train: list[str], validation: list[str]) -> Path:
    """The set of rows with these answers, below a folder; two rows make a context."""
    splits = {
        "train": write(folder / "train.parquet", train),
        "validation": write(folder / "validation.parquet", validation),
    }
    out = folder / "set"
    out.mkdir()
    training = Training(max_length=64, long_rows="error")
    build(base, splits, out, where="d.yaml", training=training, progress=lambda _: None)
    return out
