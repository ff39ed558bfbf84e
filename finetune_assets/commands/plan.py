"""`finetune plan`: what training will need and cost, before anything is run."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import fsspec
import polars as pl
from rich.console import Console
from rich.table import Table

from finetune_assets import settings
from finetune_assets.catalog.load import Entry
from finetune_assets.models.bases.reference import BaseReference
from finetune_assets.models.planning import speed as operations
from finetune_assets.models.planning.duration import duration_text
from finetune_assets.models.planning.need import Counts, target
from finetune_assets.models.planning.preflight import Plan, preflight
from finetune_assets.models.planning.shape import read
from finetune_assets.models.planning.tables import GB, memory_rows, suggestion_rows
from finetune_assets.models.records import TrainingSetRecord
from finetune_assets.storage.artifacts import MANIFEST, Manifest

SAMPLED = 500
"""Rows of a split that are tokenised where no training set has been made yet."""


def plan(entry: Entry, gpu: str | None = None, devices: int | None = None) -> Plan:
    """Estimate what a run will need on a named GPU, on the declared device, or on this machine."""
    training = entry.config.training
    if training.arguments:
        from finetune_assets.models.training.passthrough import require_valid

        require_valid(training.arguments, entry.uri)
    shape = read(BaseReference.of(entry).config(), entry.config.base.model)
    where = "--gpu" if gpu else settings.DEVICE_VARIABLE
    on = target(training, where, gpu or settings.device(), devices)
    counts = counted(entry) or sampled(entry)
    if on.speed is None:
        on = replace(on, speed=operations.measure_speed(on.hardware, shape))
    return preflight(shape, training, on, counts)


def counted(entry: Entry) -> Counts | None:
    """Count the newest training set that was made with these token keys, if there is one."""
    fs, folder = fsspec.core.url_to_fs(f"{settings.storage_uri()}/training_sets/{entry.name}")
    training = entry.config.training.model_dump(mode="json")
    paths = fs.glob(f"{folder}/*/{MANIFEST}")
    manifests = (Manifest.model_validate_json(fs.cat_file(path)) for path in paths)
    same = [m for m in manifests if all(training.get(k) == v for k, v in m.config.items())]
    newest = max(same, key=lambda manifest: manifest.created_at, default=None)
    return Counts.of(newest.record(TrainingSetRecord)) if newest else None


def sampled(entry: Entry) -> Counts:
    """Count as a run would some rows of each split, and scale that up to all of them."""
    from finetune_assets.data.splits.rehearsal import rehearse
    from finetune_assets.models.tokenization.training_set import build

    with rehearse(entry) as (_, division), tempfile.TemporaryDirectory() as scratch:
        base, out = Path(scratch) / "base", Path(scratch) / "out"
        BaseReference.of(entry).tokenizer().save_pretrained(base)
        shares: dict[str, float] = {}
        splits: dict[str, Path] = {}
        for name in ("train", "validation"):
            folder = Path(scratch) / name
            folder.mkdir()
            division.write(name, folder)
            splits[name] = folder / "rows.parquet"
            rows = pl.read_parquet(splits[name])
            some = rows.bottom_k(SAMPLED, by="id")
            some.write_parquet(splits[name])
            shares[name] = some.height / rows.height
        training = entry.config.training
        found = build(
            base, splits, out, where=entry.uri, training=training, progress=lambda _: None
        )
    return _scaled(Counts.of(TrainingSetRecord.model_validate(found)), shares)


def _scaled(counts: Counts, shares: dict[str, float]) -> Counts:
    train = shares["train"]
    return replace(
        counts,
        rows=round(counts.rows / train),
        contexts=max(1, round(counts.contexts / train)),
        tokens=round(counts.tokens / train),
        supervised=round(counts.supervised / train),
        validation_tokens=round(counts.validation_tokens / shares["validation"]),
        exact=min(shares.values()) == 1,
    )


def show(entry: Entry, made: Plan, console: Console) -> None:
    """Print a plan for people."""
    hardware, needed = made.target.hardware, made.needed.total
    devices = f"{made.target.devices} x " if made.target.devices > 1 else ""
    console.print(f"[bold]{entry.name}[/bold]  {entry.uri}  on {devices}{hardware.name}")
    console.print(_rows(memory_rows(made)))
    fits = "[green]✓ fits[/green]" if made.fits else "[red]✗ does not fit[/red]"
    console.print(f"{fits}: {needed / GB:.2f} GB of {made.target.memory / GB:.2f} GB")
    console.print(_run_table(made))
    if made.fits:
        return
    if not made.suggestions:
        console.print("no change of the recipe makes it fit: take a smaller base or a larger GPU")
        return
    said = "what would make it fit, the least harmful change first, each on top of the last:"
    console.print(said)
    console.print(_rows(suggestion_rows(made)))
    if not made.suggestions[-1].fits:
        console.print("even all of them do not: take a smaller base or a larger GPU")


def _run_table(made: Plan) -> Table:
    schedule, counts, about = made.schedule, made.counts, "" if made.counts.exact else "about "
    table = Table("run", "", box=None, pad_edge=False)
    origin = "counted in the training set" if counts.exact else f"from a sample of {SAMPLED} rows"
    table.add_row("tokens", f"{about}{made.tokens:,} in all epochs; {origin}")
    share = counts.supervised / counts.tokens
    table.add_row("contexts", f"{about}{counts.contexts:,}; {share:.0%} of their tokens carry loss")
    batch = f"{schedule.micro_batch} contexts x {schedule.accumulation} passes"
    batch += f" x {made.target.devices} devices" if made.target.devices > 1 else ""
    checkpointing = ", gradient checkpointing" if made.checkpointing else ""
    table.add_row("steps", f"{about}{schedule.total_steps:,} of {batch}{checkpointing}")
    if made.seconds is not None:
        table.add_row("time", f"about {duration_text(made.seconds)}, without loading")
    if made.cost:
        table.add_row("cost", f"about {made.cost:.2f} at {made.price_per_hour:g} an hour")
    return table


def _rows(rows: Sequence[Mapping[str, object]]) -> Table:
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: object) -> str:
    return ("✓" if value else "") if isinstance(value, bool) else str(value)
