"""The `cleaning:`, `splits:`, `contamination:` and `checks:` of a dataset file."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from finetune_assets.catalog.remakes import NOTHING, TEST_SPLITS
from finetune_assets.catalog.section import Count, Fraction, Section, Share, Switch

PersonalDataKind = Literal["email", "phone", "ip_address", "iban", "credit_card", "api_key"]


class PersonalData(Section):
    """E-mail addresses, phone numbers and the like in the text of turns."""

    action: Literal["off", "report", "redact", "drop"] = "report"
    """`report` counts and lists rows, `redact` writes [EMAIL] and the like in their place, `drop`
    sets the row aside."""
    kinds: list[PersonalDataKind] = list(get_args(PersonalDataKind))
    region: Annotated[str, Field(pattern="^[A-Z]{2}$")] | None = None
    """Country whose national phone numbers are found too, e.g. DE; without it only those that begin
    with + are, as any long number could be one."""


class NearDuplicates(Section):
    """Rows that ask the same but for a few characters (MinHash LSH, then edit distance)."""

    action: Literal["off", "group", "drop"] = "group"
    """`group` keeps them in one split, `drop` also sets aside all but the first whose answers are
    as near."""
    similarity: Annotated[float, Field(ge=0.5, lt=1)] = 0.9
    """Share of equal characters, of the normalised text, from which rows count as near."""


class Cleaning(Section):
    """Each step can be switched off; every change is counted, every removed row is kept aside."""

    unicode_nfc: Switch = True
    """Compose accents, so that one character has one spelling."""
    control_characters: Switch = True
    """Remove control and zero-width characters and byte-order marks, which no reader sees."""
    mojibake: Switch = True
    """Repair text that was decoded wrongly, such as Ã© for é."""
    min_answer_characters: Annotated[int, Field(ge=0)] = 1
    """Shorter answers are set aside."""
    max_characters: Count | None = None
    """Longer conversations are set aside."""
    exact_duplicates: Literal["drop", "keep"] = "drop"
    """Rows whose conversation is the same, character by character."""
    near_duplicates: NearDuplicates = NearDuplicates()
    personal_data: PersonalData = PersonalData()


class Splits(Section):
    """How rows are divided. The same question, or nearly the same, is never in two splits."""

    validation: Count | Fraction = 0.1
    """Fraction or count of rows; a fraction never moves a row when others are added."""
    test: Count | Fraction = 0.1
    """Fraction or count of rows."""
    column: str | None = None
    """Column that pins rows to `train`, `validation` or `test`; empty cells are drawn by hash."""
    stratify: Literal["source"] | None = None
    """Take the same share from every source, also from small ones."""
    seed: int = 0
    """Another seed draws other rows."""

    @model_validator(mode="after")
    def _something_is_left(self) -> "Splits":
        shares = [s for s in (self.validation, self.test) if isinstance(s, float)]
        if sum(shares) >= 1:
            raise ValueError("validation and test together leave nothing to train on")
        return self


class Contamination(Section):
    """Evaluation rows that training rows already contain, by overlap of word n-grams."""

    n: Annotated[int, Field(ge=3, le=50), TEST_SPLITS] = 8
    """Words of an n-gram; shorter rows are compared as a whole."""
    overlap: Annotated[float, Field(gt=0, le=1), TEST_SPLITS] = 0.8
    """Share of a row's n-grams found in training from which it counts as contaminated; as for the
    dirty rows of Llama 2 (Touvron et al., 2023, A.6)."""
    benchmarks: Annotated[list[str], TEST_SPLITS] = []
    """Files whose rows must not occur in the training split, such as a public test set."""
    max_contaminated: Annotated[Share, NOTHING] = 0.05
    """Share of validation and test, or of benchmark, rows from which the check fails."""


class Limit(Section):
    """When a check speaks, and whether it stops the run."""

    limit: Annotated[float, Field(ge=0)]
    severity: Literal["warn", "error"] = "warn"
    """`error` stops the run."""


class Checks(Section):
    """Limits of the asset checks; shares are of all rows."""

    rejected: Limit = Limit(limit=0.0)
    """Share of rows that no conversation could be made of."""
    duplicates: Limit = Limit(limit=0.05)
    """Share of exact and near duplicates."""
    personal_data: Limit = Limit(limit=0.0)
    """Share of rows with personal data left in them."""
    tokens_with_loss: Limit = Limit(limit=0.02)
    """The check fails when less than this share of tokens carries loss."""
    truncated: Limit = Limit(limit=0.0)
    """Share of rows that were cut, or dropped, to fit the context."""
    memory: Limit = Limit(limit=1.0, severity="error")
    """Share of the device's memory that training may need by the estimate, before it begins. The
    device is the one that FINETUNE_DEVICE names, or this machine."""
    answer_outliers: Limit = Limit(limit=0.02)
    """Share of answers far longer than the others (above Q3 + 3 IQR, in characters)."""
    drift: Limit = Limit(limit=0.1)
    """Change of the mix of scripts and roles against the last materialization (total variation)."""
