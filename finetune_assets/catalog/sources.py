"""The `sources:` of a dataset file: where rows come from and how each becomes a conversation."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from finetune_assets.catalog.remakes import PROMPT_CORPORA, RAW_DATASETS, SPLITS
from finetune_assets.catalog.section import Count, Fraction, Section, Switch

FormatName = Literal[
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "preference",
    "feedback",
    "text",
    "template",
]
SplitName = Literal["train", "validation", "test"]
ORIGINS = ("path", "query", "hub", "function")


class Columns(Section):
    """Which column holds what, where the names differ from those the formats know.

    A column that is not named here is looked for under the names listed.
    """

    messages: str | None = None
    """List of `{role, content}` or `{from, value}`: messages, conversations, conversation."""
    system: str | None = None
    """System message, optional in the data: system, system_prompt."""
    prompt: str | None = None
    """prompt, question, query, instruction, input."""
    completion: str | None = None
    """completion, response, answer, output."""
    instruction: str | None = None
    """instruction."""
    input: str | None = None
    """Added to the instruction after a blank line, optional: input, context."""
    output: str | None = None
    """output, response."""
    history: str | None = None
    """Earlier exchanges as a list of [question, answer], optional: history."""
    chosen: str | None = None
    """The preferred answer, as text, a message or a whole conversation: chosen."""
    rejected: str | None = None
    """The other answer: rejected."""
    label: str | None = None
    """true or false: whether the answer is wanted: label, kto_tag."""
    text: str | None = None
    """A whole document: text, content."""
    tools: str | None = None
    """Descriptions of the functions a model may call, as JSON; optional: tools, functions."""


class Template(Section):
    """Jinja templates over a row's columns, e.g. `<TABLE>: {{ table }} <QUESTION>: {{ question }}`.

    `prompt` and `completion` make one exchange, `text` makes a document.
    """

    prompt: str | None = None
    completion: str | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _one_of_the_two(self) -> "Template":
        given = [part is not None for part in (self.prompt, self.completion, self.text)]
        if given not in ([True, True, False], [False, False, True]):
            raise ValueError("a template has `prompt` and `completion`, or `text` alone")
        return self


class Source(Section):
    """Rows from one place: exactly one of `path`, `query`, `hub` and `function`."""

    path: Annotated[str | None, RAW_DATASETS] = None
    """File, folder or glob, relative to this YAML file, or a URI such as s3://bucket/rows/*.parquet.
    .jsonl, .json, .csv, .tsv, .parquet, .arrow, .txt and .md, also as .gz or .zst; or a folder
    that `Dataset.save_to_disk` wrote."""
    query: Annotated[str | None, RAW_DATASETS] = None
    """SQL whose rows are read through `connection`."""
    connection: Annotated[str | None, RAW_DATASETS] = None
    """postgresql://, sqlite:// or snowflake:// URI; ${NAME} is replaced by an environment variable,
    so that no password stands in this file."""
    hub: Annotated[str | None, RAW_DATASETS] = None
    """Hugging Face dataset as ORG/NAME@REVISION; the revision pins its content."""
    subset: Annotated[str | None, RAW_DATASETS] = None
    """Configuration of the hub dataset."""
    parts: Annotated[list[str], RAW_DATASETS] = []
    """Splits of a hub or saved dataset to read; default: all of them."""
    function: Annotated[str | None, RAW_DATASETS] = None
    """package.module:function that yields rows as dictionaries."""
    arguments: Annotated[dict[str, Any], RAW_DATASETS] = {}
    """Keyword arguments of the function."""
    format: Annotated[Literal["auto"] | FormatName, PROMPT_CORPORA] = "auto"
    """How a row becomes a conversation. `auto` looks at column names and values."""
    columns: Annotated[Columns, PROMPT_CORPORA] = Columns()
    template: Annotated[Template | None, PROMPT_CORPORA] = None
    """Builds prompt and completion, or a text, out of any columns."""
    parse_templates: Annotated[Switch, PROMPT_CORPORA] = True
    """Text that carries a known chat template (ChatML, Llama 2, ...) is parsed back into turns."""
    filter: Annotated[str | None, PROMPT_CORPORA] = None
    """SQL condition over the row's columns, e.g. `score >= 3 AND language = 'en'`; rows for which
    it does not hold are set aside."""
    sample: Annotated[Count | Fraction | None, RAW_DATASETS] = None
    """Rows to take, as a count or a fraction; chosen by hash, so the choice is stable."""
    weight: Annotated[float, Field(gt=0, le=100), SPLITS] = 1.0
    """How often each row stands in the training split; a fraction is drawn by hash."""
    split: Annotated[SplitName | None, PROMPT_CORPORA] = None
    """The split that every row of this source belongs to; default: drawn by hash."""
    system: Annotated[str | None, PROMPT_CORPORA] = None
    """System message for every row that brings none."""
    attributes: Annotated[list[str], PROMPT_CORPORA] = []
    """Columns kept beside the conversation, for evaluation slices."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        given = [name for name in ORIGINS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"a source has exactly one of {', '.join(ORIGINS)}; this has {found}")
        if (self.query is None) != (self.connection is None):
            raise ValueError("`query` and `connection` belong together")
        if self.hub is not None and not re.fullmatch(r"[^@\s]+@[^@\s]+", self.hub):
            remedy = "write hub: ORG/NAME@REVISION"
            raise ValueError(f"{remedy}; without a revision the rows could change")
        if self.function is not None and not re.fullmatch(r"[\w.]+:\w+", self.function):
            raise ValueError("write function: package.module:function")
        if self.format == "template" and self.template is None:
            raise ValueError("format: template needs `template:`")
        return self

    @property
    def label(self) -> str:
        """How errors and tables name the source, without a secret of its connection."""
        connection = re.sub(r"//[^@/]*@", "//", self.connection or "")
        return self.path or self.hub or self.function or f"query on {connection}"
