"""What a change of a key makes anew, declared at the key itself: `Annotated[int, ADAPTERS]`."""

from dataclasses import dataclass

from finetune_assets.catalog.section import Section


@dataclass(frozen=True)
class Remakes:
    """The asset that is made anew, with all that is made of it."""

    asset: str | None


RAW_DATASETS = Remakes("raw_datasets")
"""The key says which rows are read; they are compared by their content."""
PROMPT_CORPORA = Remakes("prompt_corpora")
SPLITS = Remakes("splits")
TEST_SPLITS = Remakes("test_splits")
TRAINING_SETS = Remakes("training_sets")
ADAPTERS = Remakes("adapters")
NOTHING = Remakes(None)
"""The key says how something is made or judged, not what: a change of one resumes the checkpoints
that are there, and retrains nothing."""


def keys(section: type[Section], remakes: Remakes) -> set[str]:
    """Return the names of a section's keys that declare this."""
    return {name for name, key in section.model_fields.items() if remakes in key.metadata}


def dump(section: Section, remakes: Remakes) -> dict[str, object]:
    """Return the keys of a section that declare this, and their values as JSON takes them."""
    return section.model_dump(include=keys(type(section), remakes))
