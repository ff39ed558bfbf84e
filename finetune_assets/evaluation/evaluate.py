"""The task `evaluation_reports`: base, tuned and champion on the same test rows."""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import polars as pl
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_assets.errors import UserError
from finetune_assets.evaluation.metrics import RowScore, mean, score
from finetune_assets.evaluation.report import render
from finetune_assets.evaluation.results import EvaluationRecord, Report, Sample, Scores, Slice
from finetune_assets.models.kernels.generate import Generation, generate
from finetune_assets.models.kernels.loss import nll_of
from finetune_assets.models.planning.hardware import Hardware, this_machine
from finetune_assets.models.tokenization.contexts import join
from finetune_assets.models.tokenization.fit import cut_document
from finetune_assets.models.tokenization.render import stop_token_ids
from finetune_assets.models.tokenization.rows import (
    RowTokenizer,
    conversation,
    is_document,
    prompt_of_row,
    reference,
)
from finetune_assets.storage.artifacts import write_json

DOCUMENT_TOKENS = 2048
"""Tokens of a context in which the loss of a document is measured."""


class Settings(TypedDict):
    """The keys of `evaluation:` that decide what is measured."""

    metrics: list[str]
    sql_script: str | None
    """The text of the script that builds the database of `sql_execution`."""
    max_new_tokens: int
    max_rows: int | None
    slices: list[str]
    samples: int


@dataclass(frozen=True)
class Exam:
    """The rows that every model is measured on."""

    rows: pl.DataFrame
    """Rows whose loss is measured."""
    judged: pl.DataFrame
    """Those of them that are answered; documents ask no question."""
    references: list[str]
    """The expected answers of the judged rows."""

    @classmethod
    def read(cls, test: Path, limit: int | None) -> "Exam":
        """Read a test split; at most `limit` of its rows are judged."""
        # Ids are hashes, so the first rows by id are a random and stable choice.
        rows = pl.read_parquet(test).sort("id").filter(pl.col("label").fill_null(True))
        conversations = rows.filter(pl.col("text").is_null())
        judged = conversations.head(limit) if limit else conversations
        return cls(rows, judged, [reference(row) for row in judged.iter_rows(named=True)])


@dataclass(frozen=True)
class Result:
    """What one model achieved; lists are by judged row."""

    loss: float
    """Nats per token."""
    answers: list[Generation]
    scores: dict[str, list[RowScore]]
    """Row scores by metric."""

    def means(self, rows: Sequence[int]) -> Scores:
        """Return the value of each metric over some rows."""
        return {name: mean([every[i] for i in rows]) for name, every in self.scores.items()}

    def of_rows(self, rows: Sequence[int]) -> Scores:
        """Return the value of each metric over some rows, and their runaways."""
        return self.means(rows) | {"runaway": float(sum(not self.answers[i].stopped for i in rows))}


def evaluate(
    models: dict[str, Path],
    test: Path,
    out: Path,
    *,
    dataset: str,
    base_name: str,
    adapter: str,
    config: Settings,
    primary_metric: str,
    progress: Callable[[str], None],
    metrics: Callable[[dict[str, float], int], None],
) -> EvaluationRecord:
    """Write `report.json`, `report.html` and `generations.parquet`; return the numbers.

    Args:
        models: folders by name, in the order of the report; `base` and `tuned` at least.
        test: Parquet of the test conversations.
        metrics: gets metrics by name, and a step, as they are measured.
    """
    exam, hardware = Exam.read(test, config["max_rows"]), this_machine()
    everything, results = range(exam.judged.height), {}
    for name, folder in models.items():
        results[name] = found = _examine(name, folder, exam, hardware, config, progress)
        metrics({f"{name}.{k}": v for k, v in found.means(everything).items()}, 0)
        metrics({f"{name}.loss": found.loss}, 0)
    report = Report(
        dataset=dataset,
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        base=base_name,
        adapter=adapter,
        models=list(models),
        rows=exam.judged.height,
        loss_rows=exam.rows.height,
        scores={
            name: {"loss": found.loss, "perplexity": math.exp(found.loss)}
            | found.of_rows(everything)
            for name, found in results.items()
        },
        slices=_slices(exam, results, config["slices"]),
        samples=_samples(exam, results, config["samples"]),
        primary_metric=primary_metric,
    )
    write_json(out / "report.json", report.model_dump())
    (out / "report.html").write_text(render(report), encoding="utf-8")
    _generations_table(exam, results).write_parquet(out / "generations.parquet")
    return EvaluationRecord(
        rows=exam.judged.height,
        rows_with_loss=exam.rows.height,
        scores=report.scores,
        slices=report.slices,
        hardware=hardware.record(),
    )


def _examine(
    name: str,
    folder: Path,
    exam: Exam,
    hardware: Hardware,
    config: Settings,
    progress: Callable[[str], None],
) -> Result:
    """Loss over all rows, and one greedy generation for each judged row, scored."""
    torch.set_num_threads(hardware.threads)
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=hardware.torch_dtype(), attn_implementation=hardware.attention
    )
    # transformers' stub of `to` lacks `self`.
    model = model.to(device=hardware.device).eval()  # type: ignore[call-arg]
    loss = _loss(model, tokenizer, exam.rows, str(folder))
    progress(f"{name}: loss {loss:.4f} over {exam.rows.height} rows")
    answers = generate(
        model,
        tokenizer,
        [prompt_of_row(tokenizer, row) for row in exam.judged.iter_rows(named=True)],
        max_new_tokens=config["max_new_tokens"],
        batch_size=hardware.generation_batch,
        stop_token_ids=stop_token_ids(tokenizer, str(folder)),
    )
    seconds = time.monotonic() - started
    tokens = sum(answer.token_count for answer in answers)
    progress(f"{name}: {len(answers)} answers, {tokens} tokens in {seconds:.0f} s")
    texts = [answer.text for answer in answers]
    scores = {
        metric: score(metric, texts, exam.references, sql_script=config["sql_script"])
        for metric in (config["metrics"] if answers else [])
    }
    return Result(loss, answers, scores)


def _loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: pl.DataFrame, where: str
) -> float:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    learned = list(rows.iter_rows(named=True))
    # Loss is told of every answer, also of one that training would refuse.
    tokenize = RowTokenizer.of(tokenizer, where, strict=False)
    contexts = [
        join([piece])
        for row, tokens in zip(learned, tokenize(learned), strict=True)
        for piece in (cut_document(tokens, DOCUMENT_TOKENS) if is_document(row) else [tokens])
    ]
    contexts.sort(key=lambda context: -len(context.input_ids))
    total, count = nll_of(model, contexts, batch_size=8, pad_token_id=pad, autocast=nullcontext)
    return total / count


def _slices(
    exam: Exam, results: dict[str, Result], names: list[str]
) -> dict[str, dict[str, Slice]]:
    attributes = [json.loads(text) for text in exam.judged["attributes"].to_list()]
    slices: dict[str, dict[str, Slice]] = {}
    for name in names:
        if not any(name in row for row in attributes):
            where, remedy = f"evaluation.slices: {name}", "add it to `attributes:` of the source"
            raise UserError(where, "no test row has this attribute", remedy)
        values = [str(row.get(name)) for row in attributes]
        slices[name] = {}
        for value in sorted(set(values)):
            rows = [i for i, v in enumerate(values) if v == value]
            scores = {model: found.of_rows(rows) for model, found in results.items()}
            slices[name][value] = Slice(rows=len(rows), scores=scores)
    return slices


def _samples(exam: Exam, results: dict[str, Result], count: int) -> list[Sample]:
    """The first rows; they are in order of id, so this is a random choice."""
    return [
        Sample(
            id=row["id"],
            prompt="\n\n".join(message["content"] for message in conversation(row)[:-1]),
            reference=exam.references[i],
            outputs={model: found.answers[i].text for model, found in results.items()},
            scores={
                model: {metric: every[i].score for metric, every in found.scores.items()}
                for model, found in results.items()
            },
            notes={
                model: "; ".join(note for every in found.scores.values() if (note := every[i].note))
                for model, found in results.items()
            },
            stopped={model: found.answers[i].stopped for model, found in results.items()},
        )
        for i, row in enumerate(exam.judged.head(count).iter_rows(named=True))
    ]


def _generations_table(exam: Exam, results: dict[str, Result]) -> pl.DataFrame:
    references = pl.Series("reference", exam.references)
    table = exam.judged.select("id", "source", "line").with_columns(references)
    for name, found in results.items():
        table = table.with_columns(
            pl.Series(f"{name}_output", [answer.text for answer in found.answers]),
            pl.Series(f"{name}_stopped", [answer.stopped for answer in found.answers]),
            *(
                pl.Series(f"{name}_{metric}", [row.score for row in rows])
                for metric, rows in found.scores.items()
            ),
        )
    return table
