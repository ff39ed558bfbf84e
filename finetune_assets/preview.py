"""`finetune check`: a dataset's rows as the model will see them, before anything is run."""

from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.markup import escape

from finetune_assets.catalog.load import Entry
from finetune_assets.corpora import conversations, sources
from finetune_assets.corpora.splits import split

SAMPLED_FOR_LENGTH = 500
"""Rows tokenised to tell how long they are."""


def show(entry: Entry, rows: int, console: Console) -> None:
    """Read, convert and split the rows, and print some of them with their loss mask.

    Raises:
        UserError: anything that would stop a run before training.
    """
    config = entry.config
    pinned = sources.pin([entry.locate(s.path) for s in config.sources])
    raw = sources.read_all(pinned, config.sources)
    accepted, rejected, formats = conversations.convert(raw, config.sources, config.splits.column)
    console.print(f"[green]✓[/green] [bold]{entry.name}[/bold]  {escape(entry.uri)}")
    for uri, name in formats.items():
        console.print(f"  {escape(uri)}: {name}, {raw.filter(pl.col('source') == uri).height} rows")
    for row in rejected.iter_rows(named=True):
        place = escape(f"{row['source']}:{row['line']}: {row['reason']}")
        console.print(f"  [yellow]rejected[/yellow] {place}")
    conversations.check_rejected(rejected, raw.height, config.max_rejected)
    sizes = {k: v.height for k, v in split(accepted, config.splits, entry.uri).items()}
    console.print("  splits: " + ", ".join(f"{k} {v}" for k, v in sizes.items()))
    _show_tokens(entry, accepted, rows, console)


def _show_tokens(entry: Entry, accepted: pl.DataFrame, rows: int, console: Console) -> None:
    from finetune_assets.tokenization.render import require_template, stop_token_ids, tokenize
    from finetune_assets.tokenization.training_set import loss_mask_text

    tokenizer = load_tokenizer(entry)
    require_template(tokenizer, entry.uri)
    stops = tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer, entry.uri))
    messages = accepted["messages"].to_list()
    lengths = [len(tokenize(tokenizer, m).input_ids) for m in messages[:SAMPLED_FOR_LENGTH]]
    limit = entry.config.training.max_length
    console.print(
        f"  tokens a row: median {sorted(lengths)[len(lengths) // 2]}, longest {max(lengths)} "
        f"(of {len(lengths)} rows); {sum(n > limit for n in lengths)} above max_length {limit}; "
        f"stops at {escape(str(stops))}"
    )
    for index in range(min(rows, len(messages))):
        text = "".join(
            f"[bold green]{escape(run)}[/bold green]" if loss else f"[dim]{escape(run)}[/dim]"
            for run, loss in loss_mask_text(tokenizer, tokenize(tokenizer, messages[index]))
        )
        where = accepted.row(index, named=True)
        console.rule(escape(f"{Path(where['source']).name}:{where['line']}"), align="left")
        console.print(text)
    console.print("[bold green]green[/bold green] carries loss, [dim]dim[/dim] does not")


def load_tokenizer(entry: Entry) -> Any:
    """The base's tokenizer with the declared template, without its weights."""
    from transformers import AutoTokenizer

    from finetune_assets.errors import UserError
    from finetune_assets.training.base_model import gguf_file, hub_snapshot, local_folder

    base = entry.config.base
    if base.model.startswith("package:"):
        file = gguf_file(base.model, entry.uri)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    elif base.model.startswith("hub:"):
        tokenizer = AutoTokenizer.from_pretrained(
            hub_snapshot(base.model, entry.uri, weights=False)
        )
    else:
        tokenizer = AutoTokenizer.from_pretrained(local_folder(entry.locate(base.model), entry.uri))
    if base.chat_template:
        path = Path(entry.locate(base.chat_template))
        if not path.is_file():
            raise UserError(
                entry.uri, f"`base.chat_template`: no such file {path}", "mend the path"
            )
        tokenizer.chat_template = path.read_text()
    return tokenizer
