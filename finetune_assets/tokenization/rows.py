"""From a row of a split to what the model learns of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_assets.errors import UserError
from finetune_assets.tokenization.render import Message, Tokens, prompt_ids, render, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]

CHATML_TOOLS = Path(__file__).with_name("chatml_tools.j2")
"""A ChatML template that renders tools and calls, for bases whose own leaves them out."""


def is_learned(row: Row) -> bool:
    """Whether a row is an example to follow; an answer that feedback calls unwanted is none."""
    return row.get("label") is not False


def is_document(row: Row) -> bool:
    return row.get("text") is not None


def conversation(row: Row) -> list[Message]:
    """The turns that are learned, as chat templates take them; of a preference the chosen ones."""
    turns = [*(row["messages"] or ()), *(row.get("chosen") or ())]
    return [_for_template(turn) for turn in turns]


def tools(row: Row) -> list[Any] | None:
    """Descriptions of the functions that the row's model may call."""
    return json.loads(row["tools"]) if row.get("tools") else None


def tokenize_row(tokenizer: "PreTrainedTokenizerBase", row: Row) -> Tokens:
    """Tokens of a row: loss on the assistant's turns, or on all of a document and its end.

    Raises:
        UserError: the chat template leaves out what the row holds.
    """
    if is_document(row):
        ids: list[int] = tokenizer(row["text"], add_special_tokens=False)["input_ids"]  # pyright: ignore
        end = tokenizer.eos_token_id
        ids = [*ids, end] if isinstance(end, int) else ids
        return Tokens(ids, list(ids))
    messages, functions = conversation(row), tools(row)
    _require_calls_rendered(tokenizer, messages, functions, row)
    return tokenize(tokenizer, messages, functions)


def prompt_of_row(tokenizer: "PreTrainedTokenizerBase", row: Row) -> list[int]:
    """Tokens up to where the last answer begins."""
    return prompt_ids(tokenizer, conversation(row)[:-1], tools(row))


def reference(row: Row) -> str:
    """The answer that a generation is compared with; of a call to a tool, the call."""
    last = conversation(row)[-1]
    return last["content"] or json.dumps(last.get("tool_calls"), ensure_ascii=False)


def _for_template(turn: Mapping[str, Any]) -> Message:
    message: Message = {"role": turn["role"], "content": turn["content"]}
    if turn.get("tool_calls"):
        message["tool_calls"] = json.loads(turn["tool_calls"])
    if turn.get("weight") is not None:
        message["weight"] = turn["weight"]
    return message


def _require_calls_rendered(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    functions: list[Any] | None,
    row: Row,
) -> None:
    """Many templates know no tools and leave them out without a word."""
    wanted = [call["function"]["name"] for m in messages for call in m.get("tool_calls", ())]
    wanted += [f["function"]["name"] if "function" in f else f["name"] for f in functions or ()]
    if not wanted:
        return
    text = render(tokenizer, messages, functions=functions)
    missing = next((name for name in wanted if name not in text), None)
    if missing is not None:
        raise UserError(
            f"{row['source']}:{row['line']}",
            f"the row calls or describes the function '{missing}', "
            "which the base's chat template leaves out",
            "declare a template that renders tools with `base: {model: ..., chat_template: FILE}`; "
            f"for bases that speak ChatML, a copy of {CHATML_TOOLS}",
        )
