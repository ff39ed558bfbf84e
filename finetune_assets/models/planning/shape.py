"""The shape of a model, read from its configuration: no weights and no torch are needed."""

import re
from dataclasses import dataclass, replace
from typing import Literal

from finetune_assets.errors import UserError
from finetune_assets.models.bases.reference import Config


@dataclass(frozen=True)
class Linear:
    """A linear layer of every block; bitsandbytes quantises it, and LoRA can adapt it."""

    path: str
    """Path within the block, e.g. `self_attn.q_proj`."""
    inputs: int
    outputs: int
    reads: Literal["attention", "heads", "feed_forward", "inner"]
    """The input: that of attention, the answers of its heads, that of the feed-forward layer, or
    what is inside it. Layers that read the same share its memory."""

    @property
    def parameters(self) -> int:
        """Parameters of the layer without its bias, which is under 0.1 % of it."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """A decoder of equal blocks."""

    architecture: str
    layers: int
    hidden: int
    query: int
    """Width of all query heads together."""
    key_value: int
    """Width of the keys, and of the values; less than `query` where heads share them."""
    heads: int
    intermediate: int
    """Width of the feed-forward layer that one token passes, over all its experts."""
    gated: bool
    """Whether a second projection gates the feed-forward layer, as in SwiGLU."""
    vocabulary: int
    tied: bool
    """Whether the output head is the embedding."""
    block: str
    """Path of the list of blocks in the model, e.g. `model.layers`."""
    linears: tuple[Linear, ...]
    """The linear layers of one block."""
    experts: int
    """Parameters of one block's experts and router: stacked tensors, which are neither quantised
    nor adapted, as they are no linear layers to the libraries."""
    active_experts: int
    """Parameters of the experts of a block that one token passes."""
    norms: int
    """Parameters of one block's normalisation."""
    embedding: int
    """Parameters of the embeddings of tokens, and of positions where they are learned."""

    @property
    def head(self) -> int:
        """Parameters of an output head of its own."""
        return 0 if self.tied else self.vocabulary * self.hidden

    @property
    def linear(self) -> int:
        """Parameters of all linear layers but the head."""
        return self.layers * sum(each.parameters for each in self.linears)

    @property
    def parameters(self) -> int:
        """All parameters, also those that no quantisation touches."""
        inside = self.layers * (self.experts + self.norms)
        return self.linear + self.embedding + self.head + inside + self.hidden


@dataclass(frozen=True)
class _Names:
    """How a family calls the linear layers of a block."""

    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    """Three layers, or one that is all of them."""
    out: str = "self_attn.o_proj"
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    """Gate and up, or one that is both, or (if not gated) up alone."""
    down: str = "mlp.down_proj"
    gated: bool = True
    block: str = "model.layers"


_GPT = ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", False
_FALCON = _Names(
    ("self_attention.query_key_value",), "self_attention.dense", *_GPT, block="transformer.h"
)
_FAMILIES = {
    "phi3": _Names(qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",)),
    "glm": _Names(up=("mlp.gate_up_proj",)),
    "glm4": _Names(up=("mlp.gate_up_proj",)),
    "phi": _Names(out="self_attn.dense", up=("mlp.fc1",), down="mlp.fc2", gated=False),
    "starcoder2": _Names(up=("mlp.c_fc",), down="mlp.c_proj", gated=False),
    "nemotron": _Names(up=("mlp.up_proj",), gated=False),
    "opt": _Names(
        out="self_attn.out_proj", up=("fc1",), down="fc2", gated=False, block="model.decoder.layers"
    ),
    "gpt_neox": _Names(
        ("attention.query_key_value",), "attention.dense", *_GPT, block="gpt_neox.layers"
    ),
    "falcon": _FALCON,
    "bloom": _FALCON,
    "gpt2": _Names(
        ("attn.c_attn",), "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj", False, "transformer.h"
    ),
}
"""Families that do not name their layers as Llama does; what is not here does."""

_FOREIGN = (
    "kv_lora_rank",
    "state_size",
    "ssm_cfg",
    "mamba_d_state",
    "linear_num_key_heads",
    "is_encoder_decoder",
)
"""Keys of architectures whose blocks are built otherwise: latent attention, state spaces."""


def known(config: Config) -> bool:
    """Whether the blocks that a `config.json` describes are attention and feed-forward layers."""
    config = config.get("text_config") or config
    sizes = [_first(config, *keys) for keys in _DIMENSIONS[:3]]
    return all(sizes) and not any(config.get(key) for key in _FOREIGN)


def read(config: Config, where: str) -> Shape:
    """Derive the shape that a Hugging Face `config.json` describes, if such blocks are known."""
    config = config.get("text_config") or config
    family = str(config.get("model_type", "llama"))
    names = _FAMILIES.get(family, _Names())
    hidden, layers, heads, wide = (_first(config, *keys) for keys in _DIMENSIONS)
    if not known(config):
        raise UserError(
            where,
            f"the memory of architecture '{family}' cannot be estimated: its blocks are no "
            "attention blocks as known here",
            "run a few steps (`training.max_steps`) and look at the measured peak",
        )
    head = int(config.get("head_dim") or hidden // heads)
    kv = _kv_heads(config, family, heads) * head
    attention = _attention(names, hidden, heads * head, kv)
    wide = wide or 4 * hidden
    expert = _Experts.of(config, hidden, wide, names.gated)
    dense = expert.shared if expert.count else wide
    return Shape(
        architecture=family,
        layers=layers,
        hidden=hidden,
        query=heads * head,
        key_value=kv,
        heads=heads,
        intermediate=dense + expert.active * expert.width,
        gated=names.gated,
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", True)),
        block=names.block,
        linears=(*attention, *_feed_forward(names, hidden, dense, bool(expert.count))),
        experts=expert.count * (expert.parameters + hidden),
        active_experts=expert.active * expert.parameters,
        norms=2 * hidden,
        embedding=hidden * (int(config["vocab_size"]) + _positions(config, family)),
    )


_DIMENSIONS = (
    ("hidden_size", "n_embd", "d_model"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
)


def _first(config: Config, *keys: str) -> int:
    return int(next((config[key] for key in keys if config.get(key)), 0))


def _kv_heads(config: Config, family: str, heads: int) -> int:
    if family == "falcon":
        if config.get("new_decoder_architecture"):
            return int(config.get("num_kv_heads") or heads)
        return 1 if config.get("multi_query", True) else heads
    return int(config.get("num_key_value_heads") or heads)


def _positions(config: Config, family: str) -> int:
    """Learned embeddings of positions."""
    if family == "gpt2":
        return _first(config, "n_positions", "max_position_embeddings")
    return _first(config, "max_position_embeddings") + 2 if family == "opt" else 0


def _attention(names: _Names, hidden: int, query: int, kv: int) -> list[Linear]:
    widths = (query, kv, kv) if len(names.qkv) == 3 else (query + 2 * kv,)
    outputs = zip(names.qkv, widths, strict=True)
    ins = [Linear(path, hidden, wide, "attention") for path, wide in outputs]
    return [*ins, Linear(names.out, query, hidden, "heads")]


def _feed_forward(names: _Names, hidden: int, wide: int, shared: bool) -> list[Linear]:
    """Those of the expert that every token passes, where there are experts."""
    if not wide:
        return []
    both = 2 * wide if names.gated and len(names.up) == 1 else wide
    ups = [Linear(path, hidden, both, "feed_forward") for path in names.up]
    layers = [*ups, Linear(names.down, wide, hidden, "inner")]
    inner = "mlp.shared_expert." if shared else "mlp."
    return [replace(each, path=each.path.replace("mlp.", inner)) for each in layers]


@dataclass(frozen=True)
class _Experts:
    """A block's mixture of experts; `count` is 0 where there is none."""

    count: int
    active: int
    width: int
    parameters: int
    """Of one expert."""
    shared: int
    """Width of the expert that every token passes."""

    @classmethod
    def of(cls, config: Config, hidden: int, wide: int, gated: bool) -> "_Experts":
        count = _first(config, "num_experts", "num_local_experts", "n_routed_experts")
        width = _first(config, "moe_intermediate_size") or wide
        shared = _first(config, "shared_expert_intermediate_size")
        return cls(
            count,
            _first(config, "num_experts_per_tok") if count else 0,
            width,
            (3 if gated else 2) * hidden * width,
            shared or _first(config, "n_shared_experts") * width,
        )


def adapted(shape: Shape, targets: str | list[str]) -> list[Linear]:
    """Return the linear layers of a block that LoRA adapts, as PEFT's `target_modules` chooses."""
    if targets == "all-linear":
        return list(shape.linears)
    if isinstance(targets, str):
        pattern = re.compile(targets)
        found = [x for x in shape.linears if pattern.fullmatch(f"{shape.block}.0.{x.path}")]
    else:
        ends = tuple(f".{target}" for target in targets)
        found = [x for x in shape.linears if f".{x.path}".endswith(ends)]
    if not found and not ({"lm_head", "embed_tokens"} & set(targets)):
        raise UserError(
            "training.lora.targets",
            f"no linear layer of architecture '{shape.architecture}' is called {targets!r}",
            f"write all-linear, or some of: {', '.join(x.path for x in shape.linears)}",
        )
    return found
