"""The task `evaluation_reports`: base, tuned and champion on the same test rows."""

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl

from finetune_assets.errors import UserError
from finetune_assets.evaluation.metrics import RowScore, score
from finetune_assets.evaluation.report import render
from finetune_assets.evaluation.results import Report, Sample, Slice
from finetune_assets.models.kernels.generate import Generation, generate
from finetune_assets.models.kernels.loss import mean_loss
from finetune_assets.models.planning.hardware import Hardware, this_machine
from finetune_assets.models.tokenization.contexts import join
from finetune_assets.models.tokenization.fit import cut_document
from finetune_assets.models.tokenization.render import Tokens, stop_token_ids
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


def evaluate(
    models: dict[str, Path],
    test: Path,
    out: Path,
    *,
    dataset: str,
    base_name: str,
    adapter: str,
    config: dict[str, Any],
    primary_metric: str,
    progress: Callable[[str], None],
    metrics: Callable[[dict[str, float], int], None],
) -> dict[str, Any]:
    """Write `report.json`, `report.html` and `generations.parquet`; return the numbers.

    Args:
        models: folders by name, in the order of the report; `base` and `tuned` at least.
        test: Parquet of the test conversations.
        config: `metrics` (names), `sql_script` (text or None), `max_new_tokens`, `max_rows`,
            `slices`, `samples`.
    """
    # Ids are hashes, so the first rows by id are a random and stable choice.
    rows = pl.read_parquet(test).sort("id").filter(pl.col("label").fill_null(True))
    conversations = rows.filter(pl.col("text").is_null())
    judged = conversations.head(config["max_rows"]) if config["max_rows"] else conversations
    references = [reference(row) for row in judged.iter_rows(named=True)]
    # Documents have a loss, and no question that could be answered.
    wanted = config["metrics"] if judged.height else []
    hardware = this_machine()
    losses: dict[str, float] = {}
    generations: dict[str, list[Generation]] = {}
    scored: dict[str, dict[str, list[RowScore]]] = {}
    for name, folder in models.items():
        losses[name], generations[name] = _run(
            name, folder, rows, judged, hardware, config["max_new_tokens"], progress
        )
        outputs = [g.text for g in generations[name]]
        scored[name] = {
            metric: score(metric, outputs, references, sql_script=config["sql_script"])
            for metric in wanted
        }
        metrics({f"{name}.{k}": v for k, v in _totals(scored[name]).items()}, 0)
        metrics({f"{name}.loss": losses[name]}, 0)
    everything = list(range(judged.height))
    report = Report(
        dataset=dataset,
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        base=base_name,
        adapter=adapter,
        models=list(models),
        rows=judged.height,
        loss_rows=rows.height,
        scores={
            name: {"loss": losses[name], "perplexity": math.exp(losses[name])}
            | _at(scored[name], generations[name], everything)
            for name in models
        },
        slices=_slices(judged, config["slices"], scored, generations),
        samples=_samples(judged, references, generations, scored, config["samples"]),
        primary_metric=primary_metric,
    )
    write_json(out / "report.json", report.model_dump())
    (out / "report.html").write_text(render(report), encoding="utf-8")
    _generations_table(judged, references, generations, scored).write_parquet(
        out / "generations.parquet"
    )
    return {
        "rows": judged.height,
        "rows_with_loss": rows.height,
        "scores": report.scores,
        "slices": {
            k: {v: s.model_dump() for v, s in by.items()} for k, by in report.slices.items()
        },
        "hardware": hardware.record(),
    }


def _run(
    name: str,
    folder: Path,
    rows: pl.DataFrame,
    judged: pl.DataFrame,
    hardware: Hardware,
    max_new_tokens: int,
    progress: Callable[[str], None],
) -> tuple[float, list[Generation]]:
    """Loss over all rows, and one greedy generation for each judged row."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(hardware.threads)
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=hardware.torch_dtype(), attn_implementation=hardware.attention
    )
    model = model.to(device=hardware.device).eval()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    learned = list(rows.iter_rows(named=True))
    # Loss is told of every answer, also of one that training would refuse.
    tokenize = RowTokenizer.of(tokenizer, str(folder), strict=False)
    contexts = [
        join([piece])
        for row, tokens in zip(learned, tokenize(learned), strict=True)
        for piece in _pieces(tokens, is_document(row))
    ]
    contexts.sort(key=lambda c: -len(c.input_ids))
    loss = mean_loss(model, contexts, batch_size=8, pad_token_id=pad, autocast=nullcontext)
    progress(f"{name}: loss {loss:.4f} over {rows.height} rows")
    prompts = [prompt_of_row(tokenizer, row) for row in judged.iter_rows(named=True)]
    generated = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=hardware.generation_batch,
        stop_token_ids=stop_token_ids(tokenizer, str(folder)),
    )
    seconds = time.monotonic() - started
    tokens = sum(g.token_count for g in generated)
    progress(f"{name}: {len(generated)} answers, {tokens} tokens in {seconds:.0f} s")
    return loss, generated


def _pieces(tokens: Tokens, document: bool) -> list[Tokens]:
    return cut_document(tokens, DOCUMENT_TOKENS) if document else [tokens]


def _totals(scored: dict[str, list[RowScore]]) -> dict[str, float]:
    return {name: sum(s.score for s in rows) / len(rows) for name, rows in scored.items()}


def _at(
    scored: dict[str, list[RowScore]], generated: list[Generation], indices: list[int]
) -> dict[str, float]:
    """Metrics over some of the rows."""
    totals = _totals({name: [rows[i] for i in indices] for name, rows in scored.items()})
    return totals | {"runaway": float(sum(not generated[i].stopped for i in indices))}


def _slices(
    judged: pl.DataFrame,
    names: list[str],
    scored: dict[str, dict[str, list[RowScore]]],
    generations: dict[str, list[Generation]],
) -> dict[str, dict[str, Slice]]:
    attributes = [json.loads(text) for text in judged["attributes"].to_list()]
    result: dict[str, dict[str, Slice]] = {}
    for name in names:
        if not any(name in row for row in attributes):
            raise UserError(
                f"evaluation.slices: {name}",
                "no test row has this attribute",
                "add it to `attributes:` of the source",
            )
        values = [str(row.get(name)) for row in attributes]
        result[name] = {}
        for value in sorted(set(values)):
            indices = [i for i, v in enumerate(values) if v == value]
            result[name][value] = Slice(
                rows=len(indices),
                scores={m: _at(scored[m], generations[m], indices) for m in scored},
            )
    return result


def _samples(
    judged: pl.DataFrame,
    references: list[str],
    generations: dict[str, list[Generation]],
    scored: dict[str, dict[str, list[RowScore]]],
    count: int,
) -> list[Sample]:
    """The first rows; they are in order of id, so this is a random choice."""
    samples = []
    for index, row in enumerate(judged.head(count).iter_rows(named=True)):
        samples.append(
            Sample(
                id=row["id"],
                prompt="\n\n".join(m["content"] for m in conversation(row)[:-1]),
                reference=references[index],
                outputs={m: generations[m][index].text for m in generations},
                scores={m: {k: rows[index].score for k, rows in scored[m].items()} for m in scored},
                notes={
                    m: "; ".join(note for r in scored[m].values() if (note := r[index].note))
                    for m in scored
                },
                stopped={m: generations[m][index].stopped for m in generations},
            )
        )
    return samples


def _generations_table(
    judged: pl.DataFrame,
    references: list[str],
    generations: dict[str, list[Generation]],
    scored: dict[str, dict[str, list[RowScore]]],
) -> pl.DataFrame:
    table = judged.select("id", "source", "line").with_columns(pl.Series("reference", references))
    for name, generated in generations.items():
        table = table.with_columns(
            pl.Series(f"{name}_output", [g.text for g in generated]),
            pl.Series(f"{name}_stopped", [g.stopped for g in generated]),
            *(
                pl.Series(f"{name}_{metric}", [s.score for s in rows])
                for metric, rows in scored[name].items()
            ),
        )
    return table
