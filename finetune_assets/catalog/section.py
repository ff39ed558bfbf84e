"""What every part of a dataset file has in common."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
Share = Annotated[float, Field(ge=0, le=1)]


def _word_of(value: Any) -> Any:
    return {False: "off", True: "on"}.get(value, value) if isinstance(value, bool) else value


YamlWord = BeforeValidator(_word_of)
"""YAML reads a bare `off` as false; here it is the word."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def misfit(message: str, *keys: str) -> PydanticCustomError:
    """A value that is wrong beside another, to be raised by a validator.

    Args:
        keys: the keys concerned, dotted, from the section that is validated; the error names the
            line of the first that the user wrote.
    """
    return PydanticCustomError("misfit", "{message}", {"message": message, "keys": keys})
