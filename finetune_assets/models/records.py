"""What the tasks of models measured, as their manifests keep it."""

from pydantic import JsonValue

from finetune_assets.storage.artifacts import Record, RecordPart

Curve = list[tuple[int, float]]
"""Optimizer steps and the value at each."""

TOLERANCE = {"F32": 1e-4, "BF16": 2e-2, "F16": 5e-3}
"""Largest relative logit difference by stored dtype: rounding of the merged weights explains it."""


class BaseRecord(Record):
    """A base model."""

    architecture: str
    """Name of its class in transformers."""
    parameters: int
    context_length: int | None
    """Most tokens that it was made for; None where its configuration does not say."""
    vocabulary: int
    template_fingerprint: str
    """Hash of its chat template."""
    stop_tokens: list[str]
    """Tokens that end an answer."""
    bytes: int
    """Size of its weights."""


class TokenHistogram(RecordPart):
    """Rows by their number of tokens."""

    edges: list[int]
    """Of the bins, one more than there are bins."""
    counts: list[int]


class SplitCounts(RecordPart):
    """What the rows of one split became."""

    rows: int
    """Rows that are learned from."""
    contexts: int
    truncated_rows: int
    dropped_rows: int
    dropped_at: list[str]
    """File and line of the first dropped rows."""
    tokens: int
    tokens_with_loss: int
    tokens_without_loss: int
    longest: int
    """Tokens of the longest row, before any was cut."""
    lengths: TokenHistogram
    fill: float
    """Share of the contexts' places that hold a token."""
    unwanted_rows: int = 0
    """Rows whose label says that their answer is not to be learned."""
    preview: list[list[tuple[str, bool]]]
    """The first rows as runs of text, each with whether it carries loss."""


class TrainingSetRecord(Record):
    """A training set."""

    stop_token_ids: list[int]
    train: SplitCounts
    validation: SplitCounts
    shuffle: bool = True
    """False if the contexts are to be learned in their order."""


class PlanRecord(RecordPart):
    """What a training run was expected to need, before it was started."""

    device: str
    devices: int
    needed_bytes: int
    """Memory of one device when it holds most."""
    parts_bytes: dict[str, int]
    """The same by what it is for."""
    available_bytes: int
    gradient_checkpointing: bool
    tokens: int
    """Tokens of all epochs."""
    steps: int
    seconds: float | None
    """Time of training, without loading; None if the device's speed is not known."""


class Answer(RecordPart):
    """What the model answered to a declared prompt in the course of training."""

    step: int
    prompt: str
    answer: str
    stopped: bool
    """False if the answer was cut off at the limit of new tokens."""


class AdapterRecord(Record):
    """An adapter, or a model that was trained whole, and how its training went."""

    train_loss: Curve
    validation_loss: Curve
    learning_rate: Curve
    samples: list[Answer]
    best_validation_loss: float | None
    best_step: int | None
    steps: int
    epochs: float
    resumed_from_step: int | None
    """Step of the checkpoint that the last attempt began with; None if it began at the first."""
    seconds_training: float
    seconds_loading: float
    tokens_trained: int
    tokens_per_second: float
    tokens_per_epoch: int
    trainable_parameters: int
    schedule: dict[str, int]
    hardware: dict[str, JsonValue]
    kernels: dict[str, JsonValue]
    """Which of the choices for speed and memory were made."""
    processes: int = 1
    process_peak_gb: float | None = None
    device_peak_gb: float | None = None
    """Largest memory that tensors took of a GPU."""
    plan: PlanRecord | None = None
    """What the run was expected to need; None where nobody could tell, or did not keep it."""


class MergedRecord(Record):
    """A merged model beside base and adapter."""

    merged_layers: int
    replaced_tensors: int
    """Tensors that were trained whole."""
    untied: list[str]
    """Tensors that are no longer those that the base shares."""
    max_logit_difference: float
    relative_difference: float
    """The largest difference as a share of the logits' range."""
    positions: int
    """Tokens at which logits were compared."""
    top_token_disagreements: int
    """Of those, where the two find another token the most likely one."""
    stored_dtype: str
    """Of the weights, by safetensors' name."""

    @property
    def limit(self) -> float:
        """Largest relative difference that the rounding of stored weights explains."""
        return TOLERANCE[self.stored_dtype]
