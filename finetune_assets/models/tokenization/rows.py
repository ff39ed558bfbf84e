"""Rows of a split as the tokens that a model learns."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np

from finetune_assets.errors import UserError
from finetune_assets.models.tokenization.encode import Encoder
from finetune_assets.models.tokenization.render import (
    IGNORED,
    LossMask,
    Message,
    Rendered,
    Template,
    Tokens,
    prompt_ids,
    render_conversation,
    stop_token_ids,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]

CHATML_TOOLS = Path(__file__).with_name("chatml_tools.j2")
"""A ChatML template that renders tools and calls, for bases whose own leaves them out."""


def is_learned(row: Row) -> bool:
    """Whether a row is an example to follow; an answer that feedback calls unwanted is none."""
    return row.get("label") is not False


def is_document(row: Row) -> bool:
    """Whether a row is plain text and no conversation."""
    return row.get("text") is not None


def conversation(row: Row) -> list[Message]:
    """Return the turns as chat templates take them; of a preference the chosen ones."""
    return [_for_template(t) for t in [*(row["messages"] or ()), *(row.get("chosen") or ())]]


def tools(row: Row) -> list[Any] | None:
    """Return the descriptions of the functions that the row's model may call."""
    return json.loads(row["tools"]) if row.get("tools") else None


def place(row: Row) -> str:
    """Say where a row came from, for people."""
    return f"{row.get('source')}:{row.get('line')}"


def prompt_of_row(tokenizer: "PreTrainedTokenizerBase", row: Row) -> list[int]:
    """Return the tokens of a row up to where the last answer begins."""
    return prompt_ids(tokenizer, conversation(row)[:-1], tools(row))


def reference(row: Row) -> str:
    """Return the answer that a generation is compared with; of a call to a tool, the call."""
    last = conversation(row)[-1]
    return last["content"] or json.dumps(last.get("tool_calls"), ensure_ascii=False)


@dataclass(frozen=True)
class Ends:
    """Tokens at the ends of texts."""

    stop: frozenset[int]
    """Tokens of which any ends an answer."""
    bos: int | None
    """The token that templates print first, and never twice."""
    before_documents: int | None
    """BOS, where the base's tokenizer begins plain text with it."""
    after_documents: int | None
    """EOS, with which plain text ends."""

    @classmethod
    def of(
        cls, tokenizer: "PreTrainedTokenizerBase", where: str, also_stop: Sequence[int] = ()
    ) -> "Ends":
        """Find the ends of a base, whose template must close turns."""
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        begun = tokenizer("a")["input_ids"][0] == bos  # pyright: ignore
        return cls(
            frozenset([*stop_token_ids(tokenizer, where), *also_stop]),
            bos if isinstance(bos, int) else None,
            bos if isinstance(bos, int) and begun else None,
            eos if isinstance(eos, int) else None,
        )


class Options(TypedDict, total=False):
    """The fields of a RowTokenizer that a recipe decides."""

    loss_mask: LossMask
    boundary: str | None
    strict: bool
    vocabulary: int | None


@dataclass(frozen=True)
class RowTokenizer:
    """Rows to tokens, for one base; other processes are sent it whole."""

    template: Template
    encoder: Encoder
    ends: Ends
    loss_mask: LossMask = "assistant"
    boundary: str | None = None
    """Text after which documents are cut by preference."""
    strict: bool = True
    """Whether an answer that the model would not learn as it is asked for is an error."""
    vocabulary: int | None = None
    """Tokens that the model knows."""

    @classmethod
    def of(
        cls,
        tokenizer: "PreTrainedTokenizerBase",
        where: str,
        *,
        also_stop: Sequence[int] = (),
        **options: Unpack[Options],
    ) -> "RowTokenizer":
        """Make the tokenizer of a base's rows, with `options` for the fields of this class.

        A base without a usable template or tokenizer is a UserError about `where`, the dataset
        file. `also_stop` are tokens that end an answer besides the template's and EOS.
        """
        ends = Ends.of(tokenizer, where, also_stop)
        return cls(Template.of(tokenizer, where), Encoder.of(tokenizer, where), ends, **options)

    def __call__(self, rows: Sequence[Row]) -> list[Tokens]:
        """Return the tokens of each row, with loss as `loss_mask` says, or on all of a document.

        A row that cannot be learned as it is raises a UserError that names it.
        """
        chats = iter(self._conversations([row for row in rows if not is_document(row)]))
        documents = iter(self._documents([row for row in rows if is_document(row)]))
        return [next(documents) if is_document(row) else next(chats) for row in rows]

    def _conversations(self, rows: list[Row]) -> Iterator[Tokens]:
        shown = [self._rendered(row) for row in rows]
        encoded = self.encoder([s.text for s in shown], [s.places for s in shown])
        for row, text, each in zip(rows, shown, encoded, strict=True):
            self._require_known(row, each.ids)
            count = len(text.learned)
            begins, clean = each.places[:count], each.between[:count]
            ends, answers = each.places[count : 2 * count], each.places[2 * count :]
            if self.strict:
                self._require_teachable(row, each.ids, clean, answers)
            labels = np.full(len(each.ids), IGNORED, np.int32)
            # A token that an answer shares with what is before it is the answer's.
            for begin, end in zip((begins - ~clean).tolist(), ends.tolist(), strict=True):
                labels[begin:end] = each.ids[begin:end]
            yield Tokens(each.ids, labels)

    def _rendered(self, row: Row) -> Rendered:
        messages, functions = conversation(row), tools(row)
        text = render_conversation(
            self.template, messages, functions=functions, loss_mask=self.loss_mask, where=place(row)
        )
        _require_calls_rendered(text.text, messages, functions, row)
        return text

    def _documents(self, rows: list[Row]) -> Iterator[Tokens]:
        texts = [row["text"] for row in rows]
        pattern = re.compile(re.escape(self.boundary)) if self.boundary else None
        breaks = [[m.end() for m in pattern.finditer(t)] if pattern else [] for t in texts]
        before, after = self.ends.before_documents, self.ends.after_documents
        for row, each in zip(rows, self.encoder(texts, breaks), strict=True):
            self._require_known(row, each.ids)
            ids, places = each.ids, each.places[each.between]
            if before is not None and ids[:1].tolist() != [before]:
                ids, places = np.append(np.int32(before), ids), places + 1
            if after is not None and ids[-1:].tolist() != [after]:
                ids = np.append(ids, np.int32(after))
            yield Tokens(ids, ids, places)

    def _require_known(self, row: Row, ids: np.ndarray) -> None:
        most = int(ids.max(initial=0))
        if self.vocabulary is not None and most >= self.vocabulary:
            raise UserError(
                place(row),
                f"the row has the token {most}, but the model has embeddings for "
                f"{self.vocabulary} tokens: the base's tokenizer and weights do not fit together",
                "use the tokenizer that belongs to the weights, or resize the embeddings",
            )

    def _require_teachable(
        self, row: Row, ids: np.ndarray, clean: np.ndarray, answers: np.ndarray
    ) -> None:
        """The model is to learn answers from the very tokens it is asked with, and to end them."""
        if not clean.all():
            raise UserError(
                place(row),
                "the beginning of an answer is one token with the end of the prompt, so the model "
                "would learn from a prompt that it is never asked with",
                "begin the answer with something else than white space; a chat template does "
                "that to all rows with `{{ message['content'] | trim }}`",
            )
        if not self.ends.stop.issuperset(ids[answers - 1].tolist()):
            raise UserError(
                place(row),
                "the chat template does not close every answer of the row with a token that "
                f"stops generation (one of {sorted(self.ends.stop)}); the model would not stop",
                "add the end token after the assistant's content, e.g. `{{ eos_token }}`",
            )
        if self.ends.bos is not None and ids[:2].tolist() == [self.ends.bos] * 2:
            raise UserError(
                place(row),
                "the conversation begins with BOS twice, which the model has never seen",
                "take `{{ bos_token }}` out of the chat template once",
            )


def _require_calls_rendered(
    text: str, messages: list[Message], functions: list[Any] | None, row: Row
) -> None:
    """Many templates know no tools and leave them out without a word."""
    wanted = [call["function"]["name"] for m in messages for call in m.get("tool_calls", ())]
    wanted += [f["function"]["name"] if "function" in f else f["name"] for f in functions or ()]
    missing = next((name for name in wanted if name not in text), None)
    if missing is not None:
        raise UserError(
            place(row),
            f"the row calls or describes the function '{missing}', "
            "which the base's chat template leaves out",
            "declare a template that renders tools with `base: {model: ..., chat_template: FILE}`; "
            f"for bases that speak ChatML, a copy of {CHATML_TOOLS}",
        )


def _for_template(turn: Mapping[str, Any]) -> Message:
    message: Message = {"role": turn["role"], "content": turn["content"]}
    if turn.get("tool_calls"):
        message["tool_calls"] = json.loads(turn["tool_calls"])
    if turn.get("weight") is not None:
        message["weight"] = turn["weight"]
    return message
