"""Text templates of rows: undoing a known chat template, and rendering a declared one."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from jinja2 import StrictUndefined
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.sandbox import SandboxedEnvironment
from jinja2.utils import missing

from finetune_assets.errors import UserError

Turn = dict[str, str]
"""`role` (system, user, assistant or tool) and `content`."""

_ROLES = {"model": "assistant", "ipython": "tool", "function": "tool", "developer": "system"}
_ROLE = f"(system|user|assistant|tool|{'|'.join(_ROLES)})"
_EOS = r"(?:</s>|<eos>|<\|endoftext\|>|<\|end_of_text\|>)"
_START = re.compile(r"\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>)\s*)?")
_GAP = re.compile(rf"\s*(?:{_EOS}\s*)*")
_LAST_EOS = re.compile(rf"{_EOS}\s*\Z")


@dataclass(frozen=True)
class _Template:
    opening: re.Pattern[str]
    """What the text begins with, after white space and the token that begins a sequence."""
    needs: str
    """What the text has besides; a text that begins alike but lacks it is something else."""
    undo: Callable[[str, int], list[Turn]]
    """Turns from a position on."""


def recognise(text: str) -> str | None:
    """Name of the chat template that the text carries, or None.

    The text must begin with the template's opening: prose that mentions delimiters does not.
    """
    at = _skip(_START, text, 0)
    for name, template in _TEMPLATES.items():
        if template.opening.match(text, at) and template.needs in text:
            return name
    return None


def undo(text: str, name: str) -> list[Turn]:
    """Return the turns of a text that carries the template `name`, as `recognise` gives it.

    Delimiters and the white space that the template puts around content are gone; content is
    otherwise the same, byte for byte. A last answer need not be closed; if it is also empty, the
    text ends where the model is to speak, and the answer is no turn. A ValueError says what rule
    of the template the text breaks.
    """
    if name not in _TEMPLATES:
        raise ValueError(f"no template {name!r}; there are {', '.join(_TEMPLATES)}")
    turns = _TEMPLATES[name].undo(text, _skip(_START, text, 0))
    if not turns:
        raise ValueError("there is no turn")
    return turns


def _tagged(text: str, at: int, opening: re.Pattern[str], closing: re.Pattern[str]) -> list[Turn]:
    """Return turns that open with their role and close with a token."""
    turns: list[Turn] = []
    while at < len(text):
        opened = opening.match(text, at)
        if opened is None:
            raise _not_a_turn(text, at)
        role, start = _ROLES.get(opened[1], opened[1]), opened.end()
        closed = closing.search(text, start)
        end = closed.start() if closed else len(text)
        if opening.search(text, start, end) or (closed is None and role != "assistant"):
            raise _never_closed(role, turns)
        if closed is None:
            return turns + _cut_answer(text[start:])
        turns.append(_turn(role, text[start:end]))
        at = _skip(_GAP, text, closed.end())
    return turns


def _paired(
    text: str,
    at: int,
    asks: re.Pattern[str],
    answers: re.Pattern[str],
    closing: re.Pattern[str] | None,
) -> list[Turn]:
    """Return questions and answers by turns, with the white space around content in the patterns.

    Without `closing`, or in a text that lost its special tokens, an answer ends where the next
    question begins.
    """
    closes = closing if closing and (text[:at].strip() or closing.search(text, at)) else None
    turns: list[Turn] = []
    while at < len(text):
        asked = asks.match(text, at)
        if asked is None:
            raise _not_a_turn(text, at)
        answered = answers.search(text, asked.end())
        if answered is None or asks.search(text, asked.end(), answered.start()):
            raise _never_closed("user", turns)
        turns.append(_turn("user", text[asked.end() : answered.start()]))
        start = answered.end()
        closed = (closes or asks).search(text, start)
        end = closed.start() if closed else len(text)
        if closes and asks.search(text, start, end):
            raise _never_closed("assistant", turns)
        if closed is None:
            return turns + _cut_answer(text[start:])
        content = text[start:end]
        turns.append(_turn("assistant", content if closes else _LAST_EOS.sub("", content)))
        at = closed.end() if closes else end
    return turns


def _llama2(text: str, at: int) -> list[Turn]:
    asks, answers = re.compile(r" ?\[INST\] ?"), re.compile(r" ?\[/INST\] ?")
    turns = _paired(text, at, asks, answers, re.compile(r" ?(?:</s>\s*)+(?:<s>\s*)?"))
    first = turns[0]["content"] if turns else ""
    if not first.startswith("<<SYS>>"):
        return turns
    system, closed, question = first.removeprefix("<<SYS>>").partition("<</SYS>>")
    if not closed:
        raise ValueError("the system message is never closed with <</SYS>>")
    return [
        _turn("system", system.removeprefix("\n").removesuffix("\n")),
        _turn("user", question.removeprefix("\n\n")),
        *turns[1:],
    ]


def _vicuna(text: str, at: int) -> list[Turn]:
    asks = re.compile(r"[ \n]?(?<!\w)USER:[ \n]?")
    first = asks.search(text, at)
    if first is None:
        raise ValueError("no USER: after the preamble")
    answers = re.compile(r"[ \n]?(?<!\w)ASSISTANT:[ \n]?")
    closing = re.compile(r"(?:</s>\s*)+(?:<s>\s*)?")
    system = text[at : first.start()].rstrip()
    turns = _paired(text, first.start(), asks, answers, closing)
    return [_turn("system", system), *turns] if system else turns


def _guanaco(text: str, at: int) -> list[Turn]:
    asks, answers = (re.compile(rf"[ \n]?### {role}:[ \n]?") for role in ("Human", "Assistant"))
    return _paired(text, at, asks, answers, None)


_ALPACA = re.compile(
    r"(?P<system>Below is an instruction that describes a task[^\n]*)\s*\n"
    r"### Instruction:\n(?P<instruction>.*?)"
    r"(?:\n\n### Input:\n(?P<input>.*?))?"
    r"\n\n### Response:[ \n]?(?P<answer>.*)",
    re.DOTALL,
)


def _alpaca(text: str, at: int) -> list[Turn]:
    parts = _ALPACA.fullmatch(text, at)
    if parts is None:
        raise ValueError("not a preamble, ### Instruction:, perhaps ### Input:, and ### Response:")
    if re.search(r"^### Instruction:", parts["answer"], re.MULTILINE):
        raise ValueError("a second ### Instruction: after the response")
    question = parts["instruction"]
    if parts["input"] and parts["input"].strip():
        question += "\n\n" + parts["input"]
    asked = [_turn("system", parts["system"]), _turn("user", question)]
    return asked + _cut_answer(parts["answer"])


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _cut_answer(content: str) -> list[Turn]:
    """Return the answer that a text ends with, unless it is empty."""
    content = _LAST_EOS.sub("", content)
    return [_turn("assistant", content)] if content else []


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _not_a_turn(text: str, at: int) -> ValueError:
    return ValueError(f"no turn begins at character {at}: {text[at : at + 40]!r}")


def _never_closed(role: str, before: list[Turn]) -> ValueError:
    return ValueError(f"the {role} turn after {len(before)} turns is never closed")


def _tagged_template(opening: str, closing: str, needs: str = "") -> _Template:
    begins = re.compile(opening)
    return _Template(begins, needs, partial(_tagged, opening=begins, closing=re.compile(closing)))


_TEMPLATES = {
    # <|im_sep|> stands for the line break in Phi-4.
    "chatml": _tagged_template(rf"<\|im_start\|>{_ROLE}(?:\n|<\|im_sep\|>)", r"<\|im_end\|>"),
    "llama3": _tagged_template(
        rf"<\|start_header_id\|>{_ROLE}<\|end_header_id\|>\n\n", r"<\|eo[tm]_id\|>"
    ),
    "gemma": _tagged_template(rf"<start_of_turn>{_ROLE}\n", "<end_of_turn>"),
    # Phi-4-mini has no line break after the role.
    "phi3": _tagged_template(rf"<\|{_ROLE}\|>\n?", r"<\|end\|>", needs="<|end|>"),
    "zephyr": _tagged_template(rf"<\|{_ROLE}\|>\n?", "</s>", needs="</s>"),
    "llama2": _Template(re.compile(r"\[INST\]"), "[/INST]", _llama2),
    "alpaca": _Template(
        re.compile(r"Below is an instruction that describes a task[^\n]*\s*\n### Instruction:\n"),
        "### Response:",
        _alpaca,
    ),
    # The preamble's last sentence ends just before the first question.
    "vicuna": _Template(re.compile(r"A chat between [^:]*\.\s+USER:"), "ASSISTANT:", _vicuna),
    "guanaco": _Template(re.compile(r"### Human:"), "### Assistant:", _guanaco),
}


def compile_template(text: str, where: str) -> Callable[[Mapping[str, object]], str]:
    """Return a function that renders a Jinja template over the columns of a row, in a sandbox.

    None renders as nothing, also through filters of text such as `trim`; `tojson` writes plain JSON
    rather than JSON escaped for HTML. The function raises ValueError for a row that lacks a column
    or has a value that does not fit, and UserError where the sandbox forbids something.
    """
    try:
        template = _environment().from_string(text)
    except TemplateSyntaxError as error:
        cause = f"line {error.lineno} of the template: {error.message}"
        remedy = "mend the Jinja syntax; a column is written {{ column }}"
        raise UserError(where, cause, remedy) from error

    def render(row: Mapping[str, object]) -> str:
        try:
            return template.render(row)
        except SecurityError as error:
            remedy = "use columns, filters and loops only"
            raise UserError(where, f"the template is not safe: {error}", remedy) from error
        except (TemplateError, TypeError, ArithmeticError) as error:
            raise ValueError(str(error)) from error

    return render


class _MissingColumn(StrictUndefined):
    """What stands for a column that the row lacks: an error that names it."""

    @property
    def _undefined_message(self) -> str:
        if self._undefined_obj is not missing or self._undefined_hint is not None:
            return super()._undefined_message
        return f"the template needs column '{self._undefined_name}', which the row lacks"


def _environment() -> SandboxedEnvironment:
    environment = SandboxedEnvironment(
        undefined=_MissingColumn, keep_trailing_newline=True, finalize=_empty_if_none
    )
    for name in ("trim", "lower", "upper", "title", "capitalize", "string"):
        environment.filters[name] = _none_as_empty(environment.filters[name])
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False, default=str)
    return environment


def _empty_if_none(value: object) -> object:
    return "" if value is None else value


def _none_as_empty(text_filter: Callable[..., object]) -> Callable[..., object]:
    return lambda value, *args, **kwargs: text_filter(_empty_if_none(value), *args, **kwargs)
