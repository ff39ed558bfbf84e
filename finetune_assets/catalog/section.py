"""What every part of a dataset file has in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
Share = Annotated[float, Field(ge=0, le=1)]
Switch = Annotated[bool, Field(strict=True)]
"""True or false, not a word such as `yes`, which was a boolean until YAML 1.2."""


class Section(BaseModel):
    """A block of keys; a key that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def misfit(message: str, *keys: str) -> PydanticCustomError:
    """Return what a validator raises for a value that is wrong beside another.

    The keys are dotted, from the section that is validated; the error names the line of the first
    that the user wrote.
    """
    return PydanticCustomError("misfit", "{message}", {"message": message, "keys": keys})
