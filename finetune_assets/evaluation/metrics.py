"""Scores of generated text against references: one row score in [0, 1] per output.

A dataset's value is the mean of its row scores, so that a report's table and samples agree.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, get_args

from finetune_assets.catalog.config import MetricName
from finetune_assets.errors import UserError

METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)

BINARY_METRICS: frozenset[str] = frozenset({"exact_match", "json_valid", "sql_execution"})
"""Metrics whose row scores are 0 or 1: the row is wrong or right."""

WORD = re.compile(r"[^\W_]+")
"""A word of ROUGE-L, in any script; on ASCII text the words of rouge-score's own tokenizer, which
drops every other letter and so scores other scripts 0."""


@dataclass(frozen=True, slots=True)
class RowScore:
    """The score of one row in [0, 1], and why it is low where that can be said in a line."""

    score: float
    note: str | None = None


def score(
    name: str, outputs: Sequence[str], references: Sequence[str], *, sql_script: str | None = None
) -> list[RowScore]:
    """Score each output against the reference of the same row.

    The text of `sql_script` builds the database of `sql_execution`, which raises a UserError if it
    is missing or broken, or a reference does not run on it.
    """
    if len(outputs) != len(references):
        problem = f"metric {name}: {len(outputs)} outputs for {len(references)} references"
        raise ValueError(f"{problem}; pass one output per reference, in the same order.")
    match name:
        case "json_valid":
            return [_json_valid(output) for output in outputs]
        case "sql_execution":
            from finetune_assets.evaluation.sql import score_queries

            if sql_script is None:
                remedy = "set `database` of the metric to the URI of an SQL script that builds one"
                cause = "it has no database to run queries on"
                raise UserError("metric sql_execution", cause, remedy)
            notes = score_queries(outputs, references, sql_script)
            return [RowScore(float(note is None), note) for note in notes]
        case "exact_match":
            graded = [0.0] * len(outputs)
        case "rouge_l":
            graded = _rouge_l(outputs, references)
        case "chrf":
            graded = _chrf(outputs, references)
        case _:
            raise ValueError(f"unknown metric {name!r}; the metrics are {', '.join(METRIC_NAMES)}.")
    return [
        RowScore(1.0 if _normalised(output) == _normalised(reference) else grade)
        for output, reference, grade in zip(outputs, references, graded, strict=True)
    ]


def mean(rows: Sequence[RowScore]) -> float:
    """Return a dataset's value of a metric; raise a ValueError if there is no row."""
    if not rows:
        raise ValueError("no rows to average; a metric needs at least one row.")
    return sum(row.score for row in rows) / len(rows)


def _normalised(text: str) -> str:
    """Unicode NFC without whitespace at both ends: all that exact match forgives."""
    return unicodedata.normalize("NFC", text.strip())


class _Words:
    """Tokenizer that rouge-score accepts: lower-case words of any script."""

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(unicodedata.normalize("NFC", text).lower())


def _rouge_l(outputs: Sequence[str], references: Sequence[str]) -> list[float]:
    """F-measure of the longest common subsequence of words (Lin, 2004).

    Words are what stands between spaces and punctuation: for languages that write no spaces,
    chrF tells more.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = zip(references, outputs, strict=True)
    return [float(scorer.score(*pair)["rougeL"].fmeasure) for pair in pairs]  # 0 without a word


def _chrf(outputs: Sequence[str], references: Sequence[str]) -> list[float]:
    """Sentence chrF2 of sacrebleu (Popović, 2015) over 100."""
    from sacrebleu.metrics.chrf import CHRF

    metric, pairs = CHRF(), zip(outputs, references, strict=True)
    return [min(metric.sentence_score(output, [right]).score / 100, 1.0) for output, right in pairs]


def _json_valid(output: str) -> RowScore:
    """1 if the whole output is one JSON value (RFC 8259): no code fence, no NaN, no Infinity."""
    try:
        # Numbers stay text: their size does not matter, and Python limits long integers.
        json.loads(output, parse_int=str, parse_float=str, parse_constant=_not_json)
    except RecursionError:
        return RowScore(0.0, "nested too deeply to be read")
    except ValueError as error:
        return RowScore(0.0, str(error))
    return RowScore(1.0)


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
