"""Conversations as the model sees them, and which of their text carries loss."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from finetune_assets.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
"""`role` and `content`; also `tool_calls`, and `weight` (0: no loss on this turn)."""

LossMask = Literal["assistant", "completion", "all"]
"""Every assistant turn, the last one only, or the whole text."""

IGNORED = -100
"""Label of a token without loss (PyTorch's cross-entropy default)."""

MEND = "declare a template with `base: {model: ..., chat_template: FILE.jinja}`"


@dataclass
class Tokens:
    """One row as tokens; int32 arrays of the same length."""

    input_ids: np.ndarray
    labels: np.ndarray
    """The token itself where it carries loss, else IGNORED."""
    breaks: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Numbers of tokens after which a document is cut by preference, ascending."""

    @property
    def supervised(self) -> int:
        """Tokens with loss; the first is none, as there is nothing to predict it from."""
        return int((self.labels[1:] != IGNORED).sum())


class Template:
    """A compiled chat template; it prints what `apply_chat_template` does in half the time."""

    def __init__(self, text: str, special_tokens: dict[str, str]) -> None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self._text, self._special_tokens = text, special_tokens
        self._compiled = _compile_jinja_template(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return Template, (self._text, self._special_tokens)

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", where: str = "chat template") -> "Template":
        """Compile the chat template of a base; none, or one that is no Jinja, is a UserError."""
        from jinja2 import TemplateError

        try:
            return cls(require_template(tokenizer, where), dict(tokenizer.special_tokens_map))
        except TemplateError as error:
            raise UserError(where, f"the chat template is no valid Jinja: {error}", MEND) from error

    def render(
        self,
        messages: list[Message],
        *,
        open_turn: bool = False,
        functions: list[Any] | None = None,
        where: str = "chat template",
    ) -> str:
        """Print a conversation; `open_turn` adds the assistant's header."""
        from jinja2 import TemplateError

        try:
            return self._compiled.render(
                # Templates test whether a key is there; one without a value is not.
                messages=[{k: v for k, v in m.items() if v is not None} for m in messages],
                tools=functions,
                documents=None,
                add_generation_prompt=open_turn,
                **self._special_tokens,
            )
        except (TemplateError, TypeError) as error:
            raise UserError(
                where, f"the chat template cannot render the conversation: {error}", MEND
            ) from error


@dataclass
class Rendered:
    """A conversation as text, with the places (characters) where loss begins and ends."""

    text: str
    learned: list[tuple[int, int]]
    """Begin and end of what carries loss; ascending, not overlapping."""
    answers: list[int]
    """Ends of whole answers, each of which is to end with a stop token."""

    @property
    def places(self) -> list[int]:
        """Where spans begin, where they end, where answers end."""
        return [*(a for a, _ in self.learned), *(b for _, b in self.learned), *self.answers]


def require_template(tokenizer: "PreTrainedTokenizerBase", where: str) -> str:
    """Return the chat template of a base; a UserError says that it has none."""
    if isinstance(tokenizer.chat_template, str) and tokenizer.chat_template:
        return tokenizer.chat_template
    raise UserError(
        where,
        "the base model brings no chat template",
        "declare one with `base: {model: ..., chat_template: FILE.jinja}`, "
        "or use the instruct variant of the model",
    )


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    functions: list[Any] | None = None,
) -> list[int]:
    """Return the tokens of a prompt that ends where the assistant is to answer.

    The template prints the special tokens itself, so the tokenizer must add none.
    """
    text = Template.of(tokenizer).render(messages, open_turn=True, functions=functions)
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore


def render_conversation(
    template: Template,
    messages: list[Message],
    *,
    functions: list[Any] | None = None,
    loss_mask: LossMask = "assistant",
    where: str = "chat template",
) -> Rendered:
    """Print a conversation, and find what of it carries loss.

    A turn begins after its header and ends after the token that closes it. It is found by
    rendering the conversation up to the turn, so a template needs no `{% generation %}` markers.
    A template that renders a turn differently once others follow it is a UserError: the model would
    not learn what it sees when it is asked.
    """
    text = template.render(messages, functions=functions, where=where)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if loss_mask == "completion":
        turns = turns[-1:]
    silent = [i for i in turns if messages[i].get("weight") == 0]
    wanted = silent if loss_mask == "all" else [i for i in turns if i not in silent]
    spans = []
    for i in wanted:
        before = template.render(messages[:i], open_turn=True, functions=functions, where=where)
        after = text
        if i + 1 < len(messages):
            after = template.render(messages[: i + 1], functions=functions, where=where)
        if not text.startswith(before) or not text.startswith(after) or len(after) <= len(before):
            raise UserError(
                where,
                f"the chat template renders message {i} differently when others follow it, or "
                "its beginning differently when it is asked for",
                f"{MEND} that renders each turn alike, or set `training.loss_mask: completion`, "
                "which asks it of the last turn only",
            )
        # Space after the closing token belongs to the template, not to the answer.
        spans.append((len(before), len(before) + len(after[len(before) :].rstrip())))
    if loss_mask == "all":
        return Rendered(text, _complement(spans, len(text)), [len(text.rstrip())])
    return Rendered(text, spans, [end for _, end in spans])


def _complement(spans: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    edges = [0, *(place for span in spans for place in span), length]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def stop_token_ids(tokenizer: "PreTrainedTokenizerBase", where: str) -> list[int]:
    """Return the tokens that end an answer: the one that closes a turn in the template, and EOS.

    A model whose template closes no turn with a special token would never stop: a UserError.
    """
    probe = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    found = render_conversation(Template.of(tokenizer, where), probe, where=where)
    closed = found.text[: found.answers[0]]
    last = tokenizer(closed, add_special_tokens=False)["input_ids"][-1]  # pyright: ignore
    if last not in tokenizer.all_special_ids and last not in tokenizer.get_added_vocab().values():
        raise UserError(
            where,
            "the chat template does not close the assistant's turn with a special token; "
            "the tuned model would never stop",
            "add the end token after the assistant's content, e.g. `{{ eos_token }}`",
        )
    eos = tokenizer.eos_token_id
    return sorted({last} | ({eos} if isinstance(eos, int) else set()))
