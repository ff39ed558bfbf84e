"""`finetune check`: a dataset's rows as the model will see them, before anything is run."""

from pathlib import Path

import polars as pl
from rich.console import Console
from rich.markup import escape

from finetune_assets.catalog.load import Entry
from finetune_assets.data.corpora.corpus_record import CorpusRecord
from finetune_assets.data.splits.rehearsal import rehearse
from finetune_assets.models.bases.reference import BaseReference
from finetune_assets.models.tokenization.render import stop_token_ids
from finetune_assets.models.tokenization.rows import RowTokenizer
from finetune_assets.models.tokenization.training_set import loss_mask_text

SAMPLED_FOR_LENGTH = 500
"""Rows tokenised to tell how long they are."""


def show(entry: Entry, rows: int, console: Console) -> None:
    """Read, clean and split the rows as a run would, and print some with their loss mask."""
    arguments = entry.config.training.arguments
    if arguments:  # else nobody has to wait for trl
        from finetune_assets.models.training.passthrough import require_valid

        require_valid(arguments, entry.uri)
    with rehearse(entry) as (record, division):
        console.print(f"[green]✓[/green] [bold]{entry.name}[/bold]  {escape(entry.uri)}")
        _show_corpus(record, console)
        assignment = division.assignment
        sizes = ", ".join(f"{name} {size}" for name, size in assignment.sizes().items())
        aside = f"; {assignment.set_aside} set aside, as near rows are in two splits"
        console.print(f"  splits: {sizes}{aside if assignment.set_aside else ''}")
        sample = pl.read_parquet(division.rows)
        first = sample.group_by("source_index", maintain_order=True).head(1).head(rows)
        others = sample.join(first, on="id", how="anti")
        some = others.bottom_k(max(rows, SAMPLED_FOR_LENGTH) - first.height, by="id")
        show_tokens(entry, pl.concat([first.select(sample.columns), some]), rows, console)


def _show_corpus(record: CorpusRecord, console: Console) -> None:
    for uri, name in record.formats.items():
        console.print(f"  {escape(uri)}: {name}")
    console.print(f"  {record.rows} of {record.total} rows kept")
    for row in record.rejected_preview:
        place = escape(f"{row.source}:{row.line}: {row.reason}")
        console.print(f"  [yellow]{row.step}[/yellow] {place}")
    shown = len(record.rejected_preview)
    if record.removed > shown:
        console.print(f"  [yellow]and {record.removed - shown} more[/yellow]")
    found = {**record.repaired, "near_duplicates": record.near_duplicates}
    found |= record.personal_data.kinds
    said = ", ".join(f"{name} {count}" for name, count in found.items() if count)
    if said:
        console.print(f"  rows with: {said}")


def show_tokens(entry: Entry, accepted: pl.DataFrame, rows: int, console: Console) -> None:
    """Print how long rows are in tokens, and the first ones as the model will see them."""
    tokenizer = BaseReference.of(entry).tokenizer()
    training = entry.config.training
    tokenize = RowTokenizer.of(
        tokenizer,
        entry.uri,
        loss_mask=training.loss_mask,
        # The generation settings of the base, which may name more, are not at hand.
        also_stop=tokenizer.all_special_ids,
    )
    stops = tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer, entry.uri))
    tokens = tokenize(list(accepted.iter_rows(named=True)))
    lengths = [len(t.input_ids) for t in tokens]
    limit = training.max_length
    console.print(
        f"  tokens a row: median {sorted(lengths)[len(lengths) // 2]}, longest {max(lengths)} "
        f"(of {len(lengths)} rows); {sum(n > limit for n in lengths)} above max_length {limit}; "
        f"stops at {escape(str(stops))}"
    )
    for where, row in zip(accepted.head(rows).iter_rows(named=True), tokens, strict=False):
        text = "".join(
            f"[bold green]{escape(run)}[/bold green]" if loss else f"[dim]{escape(run)}[/dim]"
            for run, loss in loss_mask_text(tokenizer, row)
        )
        title, length = f"{Path(where['source']).name}:{where['line']}", len(row.input_ids)
        if length > limit:  # it is shown whole; what training sees depends on a key
            title += f", {length} tokens, of {limit} at most: `long_rows: {training.long_rows}`"
        console.rule(escape(title), align="left")
        console.print(text)
    console.print("[bold green]green[/bold green] carries loss, [dim]dim[/dim] does not")
