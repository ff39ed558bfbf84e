"""What the model sees of a conversation, and which of it carries loss."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_assets.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
"""`role` and `content`; also `tool_calls`, and `weight` (0: no loss on this turn)."""

IGNORED = -100
"""Label of a token without loss (PyTorch's cross-entropy default)."""


@dataclass
class Tokens:
    """One conversation as tokens; both lists have the same length."""

    input_ids: list[int]
    labels: list[int]
    """The token itself where it carries loss, else IGNORED."""

    @property
    def supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels)


def require_template(tokenizer: "PreTrainedTokenizerBase", where: str) -> str:
    """The chat template of a base.

    Raises:
        UserError: it has none.
    """
    if isinstance(tokenizer.chat_template, str) and tokenizer.chat_template:
        return tokenizer.chat_template
    raise UserError(
        where,
        "the base model brings no chat template",
        "declare one with `base: {model: ..., chat_template: FILE.jinja}`, "
        "or use the instruct variant of the model",
    )


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    *,
    open_turn: bool = False,
    functions: list[Any] | None = None,
) -> str:
    """The conversation as the template prints it; `open_turn` adds the assistant's header."""
    from jinja2 import TemplateError

    try:
        return _apply(tokenizer, messages, open_turn, functions)
    except TemplateError as error:
        raise UserError(
            "chat template", f"it cannot be rendered: {error}", "mend the template"
        ) from error


def _apply(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    open_turn: bool,
    functions: list[Any] | None,
) -> str:
    return str(
        tokenizer.apply_chat_template(
            messages,
            tools=functions,
            tokenize=False,
            add_generation_prompt=open_turn,  # pyright: ignore
        )
    )


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    functions: list[Any] | None = None,
) -> list[int]:
    """Tokens of a prompt that ends where the assistant is to answer.

    The template prints the special tokens itself, so the tokenizer must add none.
    """
    text = render(tokenizer, messages, open_turn=True, functions=functions)
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore


def supervised_spans(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    functions: list[Any] | None = None,
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation and the character spans of the assistant's turns.

    A turn's span begins after its header and ends after the token that closes it. It is found by
    rendering the conversation up to the turn, so a template needs no `{% generation %}` markers.

    Raises:
        UserError: the template renders a turn differently once others follow it, so spans cannot
            be found by prefix.
    """
    text = render(tokenizer, messages, functions=functions)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("weight") == 0:
            continue
        before = render(tokenizer, messages[:index], open_turn=True, functions=functions)
        after = render(tokenizer, messages[: index + 1], functions=functions)
        if not text.startswith(before) or not text.startswith(after) or len(after) <= len(before):
            raise UserError(
                "chat template",
                f"message {index} is rendered differently when others follow it",
                "declare a template that renders each turn alike "
                "(`base: {model: ..., chat_template: FILE.jinja}`)",
            )
        # Space after the closing token belongs to the template, not to the answer.
        spans.append((len(before), len(before) + len(after[len(before) :].rstrip())))
    return text, spans


def tokenize(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    functions: list[Any] | None = None,
) -> Tokens:
    """Tokens of a conversation with loss on the assistant's turns only."""
    text, spans = supervised_spans(tokenizer, messages, functions)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]  # pyright: ignore
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]  # pyright: ignore
    labels = [IGNORED] * len(ids)
    position = 0
    for start, end in spans:
        while position < len(ids) and offsets[position][1] <= start:
            position += 1
        while position < len(ids) and offsets[position][0] < end:
            labels[position] = ids[position]
            position += 1
    return Tokens(ids, labels)


def stop_token_ids(tokenizer: "PreTrainedTokenizerBase", where: str) -> list[int]:
    """Tokens that end an answer: the one that the template closes a turn with, and EOS.

    Raises:
        UserError: the template closes no turn with a special token, so that a model trained on it
            would never stop.
    """
    probe = tokenize(
        tokenizer, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    )
    last = next(label for label in reversed(probe.labels) if label != IGNORED)
    if last not in tokenizer.all_special_ids and last not in tokenizer.get_added_vocab().values():
        raise UserError(
            where,
            "the chat template does not close the assistant's turn with a special token; "
            "the tuned model would never stop",
            "add the end token after the assistant's content, e.g. `{{ eos_token }}`",
        )
    eos = tokenizer.eos_token_id
    return sorted({last} | ({eos} if isinstance(eos, int) else set()))
