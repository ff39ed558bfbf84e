"""Rows of every format, and proposals made of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from finetune_assets_tests.commands.invoking import invoke

Rows = list[dict[str, Any]]
COUNT = 30
WORDS = ("river", "stone", "candle", "forest", "market", "window", "copper", "garden", "signal")


def question(i: int) -> str:
    """Questions of which no two are nearly the same."""
    first, second, third = (WORDS[n % len(WORDS)] for n in (i, i // 3, i * 7 + i // 10))
    return f"{first} {second} {i * i} {third}, is it {i}?"


def answer(i: int) -> str:
    return f"The answer is {i}."


def rows(make: Callable[[int], dict[str, Any]]) -> Rows:
    return [make(i) for i in range(COUNT)]


def turns(i: int) -> Rows:
    return [
        {"role": "user", "content": question(i)},
        {"role": "assistant", "content": answer(i)},
    ]


def calling(i: int) -> dict[str, Any]:
    said = [
        ("human", question(i)),
        ("function_call", json.dumps({"name": "look_up", "arguments": {"number": i}})),
        ("observation", json.dumps({"found": i})),
        ("gpt", answer(i)),
    ]
    return {
        "conversations": [{"from": name, "value": value} for name, value in said],
        "tools": json.dumps([{"name": "look_up", "description": "Looks up.", "parameters": {}}]),
    }


def jsonl(path: Path, content: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def question_table() -> pl.DataFrame:
    return pl.DataFrame(rows(lambda i: {"question": question(i), "answer": answer(i)}))


SAMPLES: dict[str, Callable[[int], dict[str, Any]]] = {
    "messages": lambda i: {"messages": turns(i)},
    "sharegpt": calling,
    "alpaca": lambda i: {"instruction": question(i), "input": "", "output": answer(i)},
    "prompt_completion": lambda i: {"prompt": question(i), "completion": answer(i)},
    "preference": lambda i: {"prompt": question(i), "chosen": answer(i), "rejected": "No."},
    "feedback": lambda i: {"messages": turns(i), "label": i % 3 > 0},
    "text": lambda i: {"text": f"{question(i)} {answer(i)} " * 3},
}


def init(base: Path, origin: str, *options: str, name: str = "new") -> str:
    """The dataset file that is written; it passes `finetune check`."""
    code, output = invoke("init", name, "--from", origin, "--base", str(base), *options)
    assert code == 0, output
    assert f"finetune check {name}" in output
    code, output = invoke("check", name)
    assert code == 0, output
    assert f"✓ {name}" in output
    return Path("catalog", f"{name}.yaml").read_text()


def refused(*arguments: str) -> str:
    code, output = invoke("init", *arguments)
    assert code == 1, output
    assert "remedy:" in output
    return output
