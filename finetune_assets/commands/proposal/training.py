"""What `finetune init` proposes for training and evaluation, from the tokens of the rows read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from finetune_assets.catalog.load import Entry
from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.bases.reference import BaseReference
from finetune_assets.models.planning import shape
from finetune_assets.models.planning import speed as operations
from finetune_assets.models.planning.duration import duration_text
from finetune_assets.models.planning.need import Counts, target
from finetune_assets.models.planning.preflight import preflight
from finetune_assets.models.planning.schedule import make_schedule
from finetune_assets.models.planning.tables import GB
from finetune_assets.models.tokenization.fit import cut_document, fit
from finetune_assets.models.tokenization.pack import pack
from finetune_assets.models.tokenization.rows import (
    CHATML_TOOLS,
    RowTokenizer,
    is_document,
    is_learned,
    reference,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
ANSWER_STEP, LONGEST_ANSWER = 32, 1024
"""Tokens; evaluation takes as long as its answers may be."""

HELD = 0.99
"""Share of rows that a length holds; the longest few would make every context dearer."""

EPOCHS = ((500, 5), (10_000, 3), (100_000, 2), (float("inf"), 1))
"""Passes for fewer than so many training rows: few rows teach little in one pass, and of many a
second pass says little new. One too many does no harm, as the checkpoint of the best validation
loss is kept."""

STEPS = 200
"""Optimizer steps that a run should have, as an adapter takes some hundred to settle: the batch is
the largest of BATCHES that leaves as many, and if none does, the smallest with STEP_ROWS rows."""

BATCHES = (1, 2, 4, 8, 16, 32)
STEP_ROWS = 4
"""Rows of a step at least; the gradient of fewer is mostly noise."""

SHORT_ANSWER = 8
"""Words up to which the usual answer can be hoped to be matched exactly."""

Keys = dict[str, Any]
"""Values of the template of the dataset file."""


@dataclass(frozen=True)
class Measured:
    """Rows in tokens."""

    lengths: list[int]
    answers: list[int]
    """Of the answers that evaluation compares with; none for documents."""
    contexts: dict[int, int]
    """Packed contexts by their length, one of LENGTHS or the model's limit."""
    limit: int | None
    """Tokens that the base can attend to."""
    chat_template: str | None
    """A template to declare where the base's own leaves out tools."""


def token_keys(entry: Entry, rows: pl.DataFrame, train_rows: int, exact: bool) -> Keys:
    """Return what stands under `base:`, `training:` and `evaluation:`.

    `rows` are the clean rows that were read, `train_rows` says how many the training split has in
    all, `exact` that this was not estimated.
    """
    measured = _measure(entry, rows)
    documents = rows["text"].is_not_null().all()
    length = max_length(measured.lengths, measured.limit)
    rows_learned = train_rows * len(measured.lengths) / rows.height
    scale = rows_learned / len(measured.lengths)
    contexts = max(1, round(measured.contexts[length] * scale))
    epochs, batch = recipe(round(rows_learned), contexts)
    cut = sum(min(n, length) if not documents else n for n in measured.lengths)
    return {
        "documents": documents,
        "max_length": length,
        "length_reason": _length_reason(measured, length, bool(documents)),
        "epochs": epochs,
        "epochs_reason": f"For {number(round(rows_learned), exact)} training rows; small sets "
        "take more passes, and the checkpoint of the best validation loss is kept.",
        "batch": batch,
        "batch_reason": _batch_reason(rows_learned / contexts, number(contexts, exact)),
        "estimate": _estimate(
            entry,
            Training(max_length=length, num_train_epochs=epochs, train_batch_size=batch),
            _counts(measured, round(rows_learned), contexts, round(cut * scale), exact),
        ),
        "base_reason": "Token counts below are this model's; run init with --base for another."
        + (f" It attends to {measured.limit} tokens at most." if measured.limit else ""),
        "chat_template": f"{entry.name}.jinja" if measured.chat_template else None,
        "chat_template_text": measured.chat_template,
        "token_line": f"tokens a row: median {_quantile(measured.lengths, 0.5)}, {HELD:.0%} have "
        f"at most {_quantile(measured.lengths, HELD)}, longest {max(measured.lengths)}",
        **_evaluation_keys(rows, measured.answers, length),
    }


def _counts(measured: Measured, rows: int, contexts: int, tokens: int, exact: bool) -> Counts:
    share = sum(measured.answers) / sum(measured.lengths) if measured.answers else 1.0
    return Counts(
        rows=rows,
        contexts=contexts,
        tokens=tokens,
        supervised=max(1, round(tokens * share)),
        longest=max(measured.lengths),
        validation_tokens=tokens // 8,  # a tenth of the rows beside eight that are learned
        exact=exact,
    )


def max_length(lengths: Sequence[int], limit: int | None) -> int:
    """Return the smallest of LENGTHS that holds HELD of the rows, within the model's limit."""
    wanted = _quantile(lengths, HELD)
    fits = next((n for n in LENGTHS if n >= wanted), LENGTHS[-1])
    return min(fits, limit or fits)


def recipe(train_rows: int, contexts: int) -> tuple[int, int]:
    """Return epochs and contexts of an optimizer step; see EPOCHS and STEPS."""
    epochs = next(passes for rows, passes in EPOCHS if train_rows < rows)
    enough = [b for b in BATCHES if b * train_rows / contexts >= STEP_ROWS] or [BATCHES[-1]]
    allowed = [b for b in enough if contexts * epochs / b >= STEPS]
    return epochs, max(allowed, default=enough[0])


def _measure(entry: Entry, rows: pl.DataFrame) -> Measured:
    base = BaseReference.of(entry)
    tokenizer = base.tokenizer()
    template = _template_for_tools(tokenizer, rows)
    tokenize = RowTokenizer.of(tokenizer, entry.uri, strict=False)
    learned = [row for row in rows.iter_rows(named=True) if is_learned(row)]
    if not learned:
        cause = f"the {rows.height} rows read are all labelled as unwanted answers"
        remedy = "add rows whose label is true; a model learns from those"
        raise UserError(entry.uri, cause, remedy)
    tokens = tokenize(learned)
    lengths = [len(t.input_ids) for t in tokens]
    limit = base.context_length()
    length = max_length(lengths, limit)
    pieces = [
        piece
        for row, t in zip(learned, tokens, strict=True)
        for piece in (cut_document(t, length) if is_document(row) else [fit(t, length)])
    ]
    _, starts = pack(np.array([len(piece.input_ids) for piece in pieces]), length)
    answers = [reference(row) for row in learned if not is_document(row)]
    encoded = tokenizer(answers, add_special_tokens=False)["input_ids"] if answers else []
    contexts = {length: len(starts) - 1}
    return Measured(lengths, [len(ids) + 1 for ids in encoded], contexts, limit, template)


def _template_for_tools(tokenizer: "PreTrainedTokenizerBase", rows: pl.DataFrame) -> str | None:
    """Set and return a template with tools for a ChatML base whose own leaves them out."""
    calls = rows["messages"].list.eval(pl.element().struct["tool_calls"].is_not_null()).list.any()
    own = str(tokenizer.chat_template or "")
    if "tool" in own or not (rows["tools"].is_not_null().any() or calls.any()):
        return None
    if not {"<|im_start|>", "<|im_end|>"} <= tokenizer.get_vocab().keys():
        return None  # tokenize_row then says which template is needed
    tokenizer.chat_template = CHATML_TOOLS.read_text()
    return str(tokenizer.chat_template)


def _length_reason(measured: Measured, length: int, documents: bool) -> str:
    counts = {n: sum(m > n for m in measured.lengths) for n in sorted({*LENGTHS, length})}
    longer = ", ".join(
        f"{n}: {count / len(measured.lengths):.1%}"
        for n, count in counts.items()
        if n <= length and (count or n == length)
    )
    cut = "cut into pieces, of which none is lost" if documents else "cut"
    limit = " It is all that the base can attend to." if length == measured.limit else ""
    return (
        f"Tokens of a context: the smallest power of two that holds {HELD:.0%} of the rows.{limit} "
        f"Longer rows are {cut}. Share of rows longer than {longer}."
    )


def _batch_reason(rows_of_context: float, contexts: str) -> str:
    return (
        f"Contexts of an optimizer step: as many as leave {STEPS} steps, and at least {STEP_ROWS} "
        f"rows. With {rows_of_context:.1f} rows packed into a context, an epoch has {contexts}."
    )


def _estimate(entry: Entry, training: Training, counts: Counts) -> str:
    """Tell the steps of the run, and what it takes here where the base's shape is known."""
    on = target(training, entry.uri, None, None)
    steps = make_schedule(counts.contexts, training, on.hardware, devices=on.devices).total_steps
    said = (
        f"An epoch has {number(counts.tokens, counts.exact)} tokens; all make "
        f"{number(steps, counts.exact)} optimizer steps."
    )
    config = BaseReference.of(entry).config()
    if not shape.known(config):
        return said
    base = shape.read(config, entry.uri)
    on = replace(on, speed=operations.measure_speed(on.hardware, base))
    made = preflight(base, training, on, counts)
    assert made.seconds is not None
    return (
        f"{said} On this machine ({on.hardware.name}) they take about "
        f"{duration_text(made.seconds)} and {made.needed.total / GB:.1f} GB of its "
        f"{on.memory / GB:.0f} GB; `finetune plan {entry.name} --gpu 'A100 80GB'` tells of another."
    )


def _evaluation_keys(rows: pl.DataFrame, answers: Sequence[int], length: int) -> Keys:
    if not answers:
        return {
            "metrics": [],
            "metrics_reason": "Documents ask no question: they are judged by their loss alone.",
            "max_new_tokens": 0,
            "answers_reason": "",
        }
    wanted = _quantile(answers, HELD)
    fits = min(ceil(wanted / ANSWER_STEP) * ANSWER_STEP, LONGEST_ANSWER)
    metrics, reason = _metrics(_last_answers(rows))
    return {
        "metrics": metrics,
        "metrics_reason": reason,
        "max_new_tokens": min(fits, length),
        "answers_reason": f"{HELD:.0%} of the answers have at most {wanted} tokens"
        + (", but evaluation takes as long as answers may be." if wanted > fits else "."),
    }


def _last_answers(rows: pl.DataFrame) -> list[str]:
    said = pl.coalesce(pl.col("chosen"), pl.col("messages")).list.last().struct["content"]
    return rows.filter(pl.col("text").is_null()).select(said).to_series().to_list()


def _metrics(answers: Sequence[str]) -> tuple[list[str], str]:
    """Return the metrics of generation that suit the answers, the most telling first."""
    if sum(map(_is_json, answers)) >= 0.95 * len(answers):
        return ["json_valid", "exact_match", "rouge_l"], "The answers are JSON."
    words = _quantile([len(a.split()) for a in answers], 0.5)
    if words <= SHORT_ANSWER:
        said = f"The median answer has {words} words, so that an exact match can be hoped for."
        return ["exact_match", "rouge_l"], said
    said = f"The median answer has {words} words: overlap is graded, as few will match exactly."
    return ["rouge_l", "chrf"], said


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _quantile(values: Sequence[int], share: float) -> int:
    """Return the smallest value that at least this share of the values does not exceed."""
    return sorted(values)[ceil(share * len(values)) - 1]


def number(value: int, exact: bool) -> str:
    """Return a count in words; an estimate has two digits that mean something."""
    return str(value) if exact else f"about {float(f'{value:.2g}'):.0f}"
