"""From one row, of any format, to one conversation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, takewhile

import polars as pl

from finetune_assets.catalog.sources import Source
from finetune_assets.data.conversations.formats import Format, read_label
from finetune_assets.data.conversations.messages import (
    Message,
    Unusable,
    make_message,
    messages_of,
    require_text,
    tools_of,
)
from finetune_assets.data.conversations.templates import compile_template, recognise, undo

MESSAGE = pl.Struct(
    {"role": pl.String, "content": pl.String, "weight": pl.Float32, "tool_calls": pl.String}
)
"""One turn. `weight` 0 means no loss; `tool_calls` is OpenAI's list of calls as JSON text."""

MESSAGES = pl.List(MESSAGE)

CONVERSATION_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,
    "messages": MESSAGES,
    "tools": pl.String,
    "text": pl.String,
    "chosen": MESSAGES,
    "rejected": MESSAGES,
    "label": pl.Boolean,
    "source": pl.String,
    "source_index": pl.Int32,
    "line": pl.Int64,
    "split": pl.String,
    "attributes": pl.String,
    "prompt_key": pl.UInt64,
    "duplicate_of": pl.String,
    "characters": pl.UInt32,
    "answer_characters": pl.UInt32,
}
"""A row is a conversation (`messages`), a document (`text`, no messages) or a preference
(`messages` are the prompt, `chosen` and `rejected` the answers). `label` is false where feedback
calls the answer unwanted. `split` is the split that the row is pinned to; `prompt_key` hashes the
normalised question; `duplicate_of` is the id of the first row that it nearly repeats."""

SPLIT_NAMES = ("train", "validation", "test")


@dataclass(slots=True)
class Conversation:
    """What a row says; see CONVERSATION_SCHEMA."""

    messages: list[Message] = field(default_factory=list)
    described: Message | None = None
    """JSON text of the tools, as the content of a turn without a role."""
    document: Message | None = None
    """A plain text, as the content of a turn without a role."""
    chosen: list[Message] | None = None
    rejected: list[Message] | None = None
    label: bool | None = None
    cut_turns: int = 0
    """Turns after the last answer, which nothing can be learned from."""

    @property
    def tools(self) -> str | None:
        """JSON text of the tools' descriptions."""
        return self.described["content"] if self.described else None

    @property
    def text(self) -> str | None:
        """The plain text of a document."""
        return self.document["content"] if self.document else None

    def turns(self) -> list[Message]:
        """Return everything that holds text, in both of two answers too."""
        document = [self.document] if self.document else []
        return [*document, *self.messages, *(self.chosen or ()), *(self.rejected or ())]

    def answers(self) -> list[str]:
        """Return what a model learns to say."""
        if self.text is not None:
            return [self.text]
        learned = [*self.messages, *(self.chosen or ())]
        return [m["content"] for m in learned if m["role"] == "assistant"]


OPENING_WORDS = 5
"""A shorter opening, such as a greeting, is no question yet."""


def question_of(conversation: Conversation) -> str:
    """Return what a row asks: the user's turns until they say something, or all of a document."""
    if conversation.text is not None:
        return conversation.text
    asked = ""
    for turn in conversation.messages:
        if turn["role"] == "user":
            asked = f"{asked}\n{turn['content']}" if asked else turn["content"]
            if len(asked.split()) >= OPENING_WORDS:
                break
    return asked


Convert = Callable[[Mapping[str, object]], Conversation]


def make_converter(found: Format, source: Source, where: str) -> Convert:
    """Return the function that makes a conversation of a row of this format, or raises Unusable."""
    convert = {
        "messages": _from_messages,
        "sharegpt": _from_messages,
        "feedback": _from_feedback,
        "preference": _from_preference,
        "alpaca": _from_alpaca,
        "prompt_completion": _from_pair,
        "text": _from_text,
    }.get(found.name)
    if convert is None:
        return _from_template(source, where)

    def run(row: Mapping[str, object]) -> Conversation:
        made = convert(row, found, source)
        tools = tools_of(found.value(row, "tools"), found.columns.get("tools"))
        made.described = make_message("", tools) if tools else None
        if made.text is not None:
            return made
        if not made.messages or made.messages[0]["role"] != "system":
            system = found.value(row, "system") or source.system
            if system:
                made.messages.insert(0, make_message("system", str(system)))
        _require_order(made)
        return made

    return run


def _require_order(made: Conversation) -> None:
    turns = [m["role"] for m in made.messages if m["role"] != "system"]
    if not turns or turns[0] != "user":
        raise Unusable("the conversation does not begin with the user")
    if any(m["role"] == "system" for m in made.messages[1:]):
        raise Unusable("a system message after the first message")
    if any(a == b and a != "tool" for a, b in pairwise(turns)):
        raise Unusable("two turns of the same role in a row")
    if ("user", "tool") in pairwise(turns):
        raise Unusable("the result of a tool that nobody called")
    if made.chosen is not None:
        return
    if "assistant" not in turns:
        raise Unusable("no assistant turn to learn from")
    while made.messages[-1]["role"] != "assistant":
        made.messages.pop()
        made.cut_turns += 1


def _exchange(prompt: str, answer: str) -> list[Message]:
    return [make_message("user", prompt), make_message("assistant", answer)]


def _from_messages(row: Mapping[str, object], found: Format, source: Source) -> Conversation:
    return Conversation(messages_of(found.value(row, "messages"), found.columns["messages"]))


def _from_feedback(row: Mapping[str, object], found: Format, source: Source) -> Conversation:
    read = _from_messages if "messages" in found.columns else _from_pair
    made = read(row, found, source)
    made.label = read_label(found.value(row, "label"))
    if made.label is None:
        raise Unusable("the label is neither true nor false", found.columns["label"])
    return made


def _from_alpaca(row: Mapping[str, object], found: Format, source: Source) -> Conversation:
    instruction = _text(row, found, "instruction", "instruction")
    extra = found.value(row, "input")
    prompt = f"{instruction}\n\n{extra}" if extra and str(extra).strip() else instruction
    history = _history(found.value(row, "history"), found.columns.get("history"))
    return Conversation([*history, *_exchange(prompt, _text(row, found, "output", "answer"))])


def _history(value: object, column: str | None) -> list[Message]:
    if not value:
        return []
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        for pair in value
    ):
        raise Unusable("the history is not a list of [question, answer]", column)
    return [turn for question, answer in value for turn in _exchange(question, answer)]


def _from_pair(row: Mapping[str, object], found: Format, source: Source) -> Conversation:
    prompt = _text(row, found, "prompt", "prompt")
    answer = _text(row, found, "completion", "answer")
    if source.parse_templates and recognise(prompt):
        turns = _undone(prompt + answer, found.columns["prompt"])
        if turns is not None:
            return Conversation(turns)
    return Conversation(_exchange(prompt, answer))


def _from_text(row: Mapping[str, object], found: Format, source: Source) -> Conversation:
    text = _text(row, found, "text", "text")
    turns = _undone(text, found.columns["text"]) if source.parse_templates else None
    return Conversation(document=make_message("", text)) if turns is None else Conversation(turns)


def _undone(text: str, column: str) -> list[Message] | None:
    name = recognise(text)
    if name is None:
        return None
    try:
        turns = undo(text, name)
    except ValueError as error:
        raise Unusable(f"broken {name} template: {error}", column) from error
    return [
        make_message(turn["role"], require_text(turn["content"], index, turn["role"], column))
        for index, turn in enumerate(turns)
    ]


def _from_template(source: Source, where: str) -> Convert:
    template = source.template
    assert template is not None
    key = f"{where}: template"
    parts = {
        name: compile_template(text, f"{key}.{name}")
        for name, text in template.model_dump().items()
        if text is not None
    }

    def run(row: Mapping[str, object]) -> Conversation:
        try:
            made = {name: render(row) for name, render in parts.items()}
        except ValueError as error:
            raise Unusable(str(error)) from error
        for name, text in made.items():
            if not text.strip():
                raise Unusable(f"the template's {name} is empty")
        if "text" in made:
            return Conversation(document=make_message("", made["text"]))
        system = [make_message("system", source.system)] if source.system else []
        return Conversation([*system, *_exchange(made["prompt"], made["completion"])])

    return run


def _from_preference(row: Mapping[str, object], found: Format, source: Source) -> Conversation:
    """Read a prompt and two answers; or two whole conversations that part ways at the end."""
    columns = found.columns
    chosen = _answer(found.value(row, "chosen"), columns["chosen"])
    rejected = _answer(found.value(row, "rejected"), columns["rejected"])
    prompt: list[Message] = []
    if "messages" in columns:
        prompt = messages_of(found.value(row, "messages"), columns["messages"])
    elif "prompt" in columns and isinstance(found.value(row, "prompt"), list):
        prompt = messages_of(found.value(row, "prompt"), columns["prompt"])
    if not prompt:
        pairs = zip(chosen, rejected, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        prompt = [make_message("user", _text(row, found, "prompt", "prompt"))]
    for answer, column in ((chosen, "chosen"), (rejected, "rejected")):
        if not answer:
            raise Unusable("the two answers are the same", columns[column])
        if answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant":
            raise Unusable("the answer is not the assistant's", columns[column])
    if prompt[-1]["role"] not in ("user", "tool"):
        raise Unusable("the prompt does not end with the user")
    return Conversation(prompt, chosen=chosen, rejected=rejected)


def _answer(value: object, column: str) -> list[Message]:
    if isinstance(value, str):
        return [make_message("assistant", require_text(value, 0, "answer", column))]
    return messages_of([value] if isinstance(value, dict) else value, column)


def _text(row: Mapping[str, object], found: Format, field: str, what: str) -> str:
    column = found.columns.get(field)
    if column is None:
        raise Unusable(f"no {what}")
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Unusable(f"empty {what} (column '{column}')", column)
    if not isinstance(value, str):
        raise Unusable(f"{what} is not text (column '{column}')", column)
    return value
