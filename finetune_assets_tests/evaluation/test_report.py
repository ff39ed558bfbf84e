"""The page shows what the record says, escapes all text, and loads nothing."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from finetune_assets.evaluation.report import render
from finetune_assets.evaluation.results import (
    Report,
    Sample,
    Slice,
    compare_table,
    show_change,
    verdict,
)

HOSTILE = "</pre><script>alert('x')</script><img src=https://evil.example/x.png onerror=go()>\"'&"


def make_sample(identifier: str, base: float, tuned: float, **changes: Any) -> Sample:
    fields: dict[str, Any] = {
        "id": identifier,
        "prompt": f"prompt of {identifier}",
        "reference": "right answer",
        "outputs": {"base": f"base says {identifier}", "tuned": f"tuned says {identifier}"},
        "scores": {"base": {"exact_match": base}, "tuned": {"exact_match": tuned}},
    }
    return Sample(**(fields | changes))


def make_report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "dataset": "shop",
        "created": "2026-01-15 09:12 UTC",
        "base": "a-base@1234",
        "adapter": "a41f09c2",
        "models": ["base", "tuned"],
        "rows": 40,
        "scores": {
            "base": {"loss": 2.0, "perplexity": 7.39, "exact_match": 0.25, "runaway": 30.0},
            "tuned": {"loss": 0.5, "perplexity": 1.65, "exact_match": 0.75, "runaway": 0.0},
        },
        "primary_metric": "exact_match",
    }
    return Report(**(fields | changes))


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text outside style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def text_of(page: str) -> str:
    return " ".join(Elements(page).text.split())


def test_hostile_text_is_shown_and_never_markup() -> None:
    models = ["base", "tuned", "champion"]
    scores = {model: {HOSTILE: 0.5} for model in models}
    report = make_report(
        dataset=HOSTILE,
        base=HOSTILE,
        adapter=HOSTILE,
        created=HOSTILE,
        models=models,
        scores=scores,
        primary_metric=HOSTILE,
        slices={HOSTILE: {HOSTILE: Slice(rows=3, scores=scores)}},
        samples=[
            Sample(
                id=HOSTILE,
                prompt=HOSTILE,
                reference=HOSTILE,
                outputs=dict.fromkeys(models, HOSTILE),
                scores=scores,
                notes=dict.fromkeys(models, HOSTILE),
                stopped=dict.fromkeys(models, False),
            )
        ],
    )
    page = Elements(render(report))
    harmless = Elements(render(make_report(samples=[make_sample("a", 0, 1)])))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in harmless.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]
    assert page.open == []
    # Dataset, base, adapter, time, slice, and in the sample: id, prompt, reference, answers, notes.
    assert page.text.count(HOSTILE) >= 14


def test_the_page_requests_nothing() -> None:
    page = render(make_report(samples=[make_sample("a", 0, 1)]))
    assert page.startswith("<!doctype html>")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    for tag, attributes in Elements(page).tags:
        assert "src" not in attributes
        assert attributes.get("href", "data:,") == "data:,", tag
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("primary", "tuned", "headline"),
    [
        ("exact_match", 0.75, "Better than the base: exact_match 0.250 → 0.750 ▲ +0.500"),
        ("exact_match", 0.125, "Worse than the base: exact_match 0.250 → 0.125 ▼ −0.125"),
        ("exact_match", 0.25, "No different from the base: exact_match 0.250 → 0.250"),
        ("loss", 0.5, "Better than the base: loss 2.0000 → 0.5000 ▼ −1.5000"),
        ("loss", 2.5, "Worse than the base: loss 2.0000 → 2.5000 ▲ +0.5000"),
    ],
)
def test_the_headline_tells_the_verdict(primary: str, tuned: float, headline: str) -> None:
    scores = make_report().scores
    report = make_report(
        scores=scores | {"tuned": scores["tuned"] | {primary: tuned}}, primary_metric=primary
    )
    assert headline in text_of(render(report))


def test_the_champion_is_compared_too() -> None:
    scores = make_report().scores
    champion = {"loss": 0.4, "perplexity": 1.49, "exact_match": 0.8, "runaway": 0.0}
    report = make_report(
        models=["base", "tuned", "champion"], scores=scores | {"champion": champion}
    )
    text = text_of(render(report))
    assert "Worse than the champion, which has 0.800." in text
    assert "tuned vs champion" in text
    table = compare_table(report).splitlines()
    assert table[0] == "| metric | base | tuned | champion | tuned vs base | tuned vs champion |"
    assert table[4] == (
        "| **exact_match** | 0.250 | 0.750 | 0.800 | ▲ +0.500 better | ▼ −0.050 worse |"
    )
    assert table[5] == "| runaway | 30 | 0 | 0 | ▼ −30 better | same |"


def test_samples_stand_in_the_order_of_concern() -> None:
    samples = [
        make_sample("fine", 1, 1),
        make_sample("fixed", 0, 1),
        make_sample("stuck", 0, 0),
        make_sample("broken", 1, 0, notes={"tuned": "no such column: town", "base": ""}),
        make_sample("endless", 0, 0, stopped={"base": True, "tuned": False}),
    ]
    text = text_of(render(make_report(samples=samples)))
    places = [
        text.index(part)
        for part in (
            "Worse than the base (1)",
            "tuned says broken no such column: town",
            "Unchanged, not right (2)",
            "tuned says stuck",
            "did not stop tuned says endless",
            "Better than the base (1)",
            "base exact_match ✗ base says fixed tuned exact_match ✓ tuned says fixed",
            "Right before and after (1)",
            "tuned says fine",
        )
    ]
    assert places == sorted(places)
    assert "5 of 40 test rows, grouped by exact_match" in text


def test_samples_are_grouped_by_a_row_metric_if_loss_decides() -> None:
    report = make_report(samples=[make_sample("a", 1, 0)], primary_metric="loss")
    assert "grouped by exact_match" in text_of(render(report))
    unscored = make_report(samples=[make_sample("a", 1, 0, scores={})], primary_metric="loss")
    assert "All (1)" in text_of(render(unscored))


def test_slices_and_row_counts_are_shown() -> None:
    part = Slice(rows=7, scores={"base": {"exact_match": 0.0}, "tuned": {"exact_match": 1.0}})
    text = text_of(render(make_report(slices={"level": {"hard": part}}, loss_rows=90)))
    assert "By level" in text
    assert "hard 7 exact_match 0.000 1.000 ▲ +1.000 better" in text
    assert "40, loss over 90" in text


def test_infinite_values_are_shown_and_survive_the_record() -> None:
    scores = make_report().scores
    report = make_report(scores=scores | {"base": scores["base"] | {"perplexity": float("inf")}})
    again = Report.model_validate_json(report.model_dump_json())
    assert again == report
    assert "∞" in render(again)
    assert "| perplexity | ∞ | 1.65 | – better |" in compare_table(again)


def test_a_difference_that_is_not_shown_is_none() -> None:
    assert verdict("rouge_l", 0.50001, 0.50002) == "same"
    assert show_change("rouge_l", 0.50001, 0.50002) == "="
    assert verdict("loss", 1.0, float("nan")) == "worse"
    assert verdict("loss", float("nan"), 1.0) == "better"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["tuned", "base"]}, "list `base` and `tuned` first"),
        ({"primary_metric": "bleu"}, "primary metric bleu has no score"),
        ({"scores": {"base": {"loss": 1.0}}}, "tuned and base are not scored by the same"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_a_record_that_does_not_add_up_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_report(**changes)
