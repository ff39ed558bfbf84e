"""`finetune plan`: what training will need and cost, before anything is run."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
from rich.console import Console
from rich.table import Table

from finetune_assets import settings
from finetune_assets.catalog.load import Entry
from finetune_assets.models.planning import speed as operations
from finetune_assets.models.planning.duration import duration_text
from finetune_assets.models.planning.need import Counts, target
from finetune_assets.models.planning.preflight import Plan, preflight
from finetune_assets.models.planning.shape import Config, folder_config, gguf_config, read
from finetune_assets.models.planning.tables import GB, memory_rows, suggestion_rows
from finetune_assets.storage.artifacts import MANIFEST, Manifest

SAMPLED = 500
"""Rows of a split that are tokenised where no training set has been made yet."""


def plan(entry: Entry, gpu: str | None = None, devices: int | None = None) -> Plan:
    """What a run will need on a named GPU, on the declared device, or on this machine.

    Raises:
        UserError: anything of the recipe, the base or the data that would stop a run.
    """
    training = entry.config.training
    if training.arguments:
        from finetune_assets.models.training.passthrough import require_valid

        require_valid(training.arguments, entry.uri)
    shape = read(base_config(entry), entry.config.base.model)
    where = "--gpu" if gpu else settings.DEVICE_VARIABLE
    on = target(training, where, gpu or settings.device(), devices)
    counts = counted(entry) or sampled(entry)
    if on.speed is None:
        on = replace(on, speed=operations.measured(on.hardware, shape))
    return preflight(shape, training, on, counts)


def base_config(entry: Entry) -> Config:
    """The configuration of the base that a dataset names; its weights are not loaded."""
    from finetune_assets.models.bases.reference import gguf_file, hub_snapshot, local_folder

    model = entry.config.base.model
    if model.startswith("package:"):
        return gguf_config(gguf_file(model, entry.uri))
    if model.startswith("hub:"):
        return folder_config(hub_snapshot(model, entry.uri, weights=False))
    return folder_config(local_folder(entry.locate(model), entry.uri))


def counted(entry: Entry) -> Counts | None:
    """Tokens of the newest training set that was made with these token keys, if there is one."""
    fs, folder = fsspec.core.url_to_fs(f"{settings.storage_uri()}/training_sets/{entry.name}")
    training = entry.config.training.model_dump(mode="json")
    manifests = (
        Manifest.model_validate_json(fs.cat_file(path))
        for path in fs.glob(f"{folder}/*/{MANIFEST}")
    )
    same = [m for m in manifests if all(training.get(k) == v for k, v in m.config.items())]
    newest = max(same, key=lambda manifest: manifest.created_at, default=None)
    return Counts.of(newest.statistics) if newest else None


def sampled(entry: Entry) -> Counts:
    """Tokens as a run would count them, of some rows of each split, scaled up to all of them."""
    from finetune_assets.data.splits.rehearsal import cleaned
    from finetune_assets.models.bases.reference import load_tokenizer
    from finetune_assets.models.tokenization.training_set import build

    with cleaned(entry) as (_, division), tempfile.TemporaryDirectory() as scratch:
        base, out = Path(scratch) / "base", Path(scratch) / "out"
        load_tokenizer(entry).save_pretrained(base)
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
        counts = build(
            base,
            splits,
            out,
            where=entry.uri,
            training=entry.config.training,
            progress=lambda _: None,
        )
    return _scaled(counts, shares)


def _scaled(statistics: dict[str, Any], shares: dict[str, float]) -> Counts:
    counts, train = Counts.of(statistics), shares["train"]
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
    console.print(
        "what would make it fit, the least harmful change first, each on top of the last:"
    )
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


def _rows(rows: list[dict[str, Any]]) -> Table:
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    return ("✓" if value else "") if isinstance(value, bool) else str(value)
