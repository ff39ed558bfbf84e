"""One turn of a conversation, out of every shape in which people write turns down."""

import contextlib
from typing import TypedDict

import orjson

from finetune_assets.data.sources.files import parse

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""Canonical role of every name in use."""


class Message(TypedDict):
    """One turn."""

    role: str
    content: str
    weight: float | None
    """0: no loss; None: what `training.loss_mask` says."""
    tool_calls: str | None
    """OpenAI's list of calls as JSON text."""


class Unusable(Exception):
    """Why one row cannot become a conversation, and in which column."""

    def __init__(self, reason: str, column: str | None = None) -> None:
        self.reason, self.column = reason, column
        super().__init__(reason)


def make_message(role: str, content: str) -> Message:
    """Return a turn that calls no tool and has no weight of its own."""
    return {"role": role, "content": content, "weight": None, "tool_calls": None}


def messages_of(value: object, column: str) -> list[Message]:
    """Return turns given as OpenAI's `{role, content}`, sharegpt's `{from, value}`, or as JSON."""
    if isinstance(value, str):
        try:
            value = parse(value)
        except ValueError:
            value = None
    if not isinstance(value, list) or not value:
        raise Unusable("no messages", column)
    messages: list[Message] = []
    for index, given in enumerate(value):
        made = _message(given, index, column)
        last = messages[-1] if messages else None
        # A sharegpt answer may speak before it calls; together they are one turn.
        only_calls = made["tool_calls"] and not made["content"]
        if only_calls and last and last["role"] == "assistant" and not last["tool_calls"]:
            last["tool_calls"] = made["tool_calls"]
        else:
            messages.append(made)
    return messages


def _message(given: object, index: int, column: str) -> Message:
    if not isinstance(given, dict):
        raise Unusable(f"message {index} is not an object", column)
    name = given.get("role", given.get("from"))
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        known = ", ".join(dict.fromkeys(ROLES.values()))
        raise Unusable(f"message {index} has no known role ({known})", column)
    content = given.get("content", given.get("value"))
    calls = given.get("tool_calls") or None
    if given.get("function_call"):
        calls = [given["function_call"]]
    if name == "function_call":
        calls, content = _called(content, index, column), None
    content = _joined(content, index, column)
    weight = given.get("weight")
    if weight not in (None, 0, 1) or isinstance(weight, str):
        raise Unusable(f"the weight of message {index} is neither 0 nor 1", column)
    if calls and (not content or isinstance(content, str)):
        said = str(content or "")
    else:
        said = require_text(content, index, name, column)
    return {
        "role": role,
        "content": said,
        "weight": None if weight is None else float(weight),
        "tool_calls": _calls(calls, index, column) if calls else None,
    }


def require_text(content: object, index: int, role: object, column: str) -> str:
    """Return a turn's content; raise Unusable if it is empty, or no text."""
    if not isinstance(content, str) or not content.strip():
        raise Unusable(f"empty content in message {index} ({role})", column)
    return content


def _joined(content: object, index: int, column: str) -> object:
    """Return OpenAI's content parts as one text."""
    if not isinstance(content, list):
        return content
    given = [part.get("text") if isinstance(part, dict) else part for part in content]
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(given):
        raise Unusable(f"message {index} holds more than text", column)
    return "".join(texts)


def _called(content: object, index: int, column: str) -> list[object]:
    try:
        calls = parse(content) if isinstance(content, str) else content
    except ValueError as error:
        raise Unusable(f"the function call in message {index} is not JSON", column) from error
    return calls if isinstance(calls, list) else [calls]


def _calls(calls: object, index: int, column: str) -> str:
    """Return OpenAI's list of tool calls as JSON text, with arguments as objects."""
    if not isinstance(calls, list):
        raise Unusable(f"the tool calls of message {index} are not a list", column)
    made = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Unusable(f"a tool call of message {index} names no function", column)
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            # Arguments that are no JSON are passed on as the text they are.
            with contextlib.suppress(ValueError):
                arguments = parse(arguments) if arguments.strip() else {}
        kept = {"id": call["id"]} if "id" in call else {}
        called = {"name": function["name"], "arguments": arguments}
        made.append({**kept, "type": "function", "function": called})
    return orjson.dumps(made).decode()


def tools_of(value: object, column: str | None) -> str | None:
    """Return descriptions of tools as JSON text of a list; None for none."""
    if value is None or value == "" or value == []:
        return None
    try:
        tools = parse(value) if isinstance(value, str) else value
    except ValueError as error:
        raise Unusable("the tools are not JSON", column) from error
    if not isinstance(tools, list):
        raise Unusable("the tools are not a list", column)
    return orjson.dumps(tools).decode() if tools else None
