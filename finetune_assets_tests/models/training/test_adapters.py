"""Every kind of adapter: it learns, and what is saved is what was trained, on the original base."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.adapters.loading import _device_map, add_adapter, load_base
from finetune_assets.models.adapters.saving import INITIAL, save_adapter
from finetune_assets.models.bases.weights import stored_dtype
from finetune_assets.models.merging.merge import merge, parity
from finetune_assets.models.planning.hardware import Hardware, this_machine
from finetune_assets.models.records import TOLERANCE
from finetune_assets.models.training.guards import GradientGuard

WHOLE = {"quantization": "none"}
KINDS: dict[str, dict[str, Any]] = {
    "lora": WHOLE,
    "gaussian": {**WHOLE, "lora": {"init": "gaussian"}},
    "rslora": {**WHOLE, "lora": {"rslora": True}},
    "dora": {**WHOLE, "lora": {"dora": True}},
    "dropout": {**WHOLE, "lora": {"dropout": 0.1}},
    "bias": {**WHOLE, "lora": {"bias": "all"}},
    "bias of layers": {**WHOLE, "lora": {"bias": "lora_only", "dora": True}},
    "some layers": {**WHOLE, "lora": {"targets": ["q_proj", "v_proj"]}},
    "by expression": {**WHOLE, "lora": {"targets": r".*\.(up|down)_proj"}},
    "embeddings": {**WHOLE, "lora": {"targets": ["q_proj", "embed_tokens"]}},
    "head": {**WHOLE, "lora": {"modules_to_save": ["lm_head"]}},
    "norms": {**WHOLE, "lora": {"modules_to_save": ["norm"], "dora": True}},
    "pissa": {**WHOLE, "lora": {"init": "pissa"}},
    "pissa, rslora, dora": {**WHOLE, "lora": {"init": "pissa", "rslora": True, "dora": True}},
    "pissa, head": {**WHOLE, "lora": {"init": "pissa", "modules_to_save": ["lm_head"]}},
    "nf4": {"quantization": "nf4"},
    "nf4, dora": {"quantization": "nf4", "lora": {"dora": True}},
    "nf4, head": {"quantization": "nf4", "lora": {"modules_to_save": ["lm_head"]}},
    "fp4": {"quantization": "fp4", "double_quantization": False},
    "int8": {"quantization": "int8"},
    "loftq": {"quantization": "nf4", "lora": {"init": "loftq"}},
    "loftq, rslora, dora": {
        "quantization": "nf4",
        "lora": {"init": "loftq", "rslora": True, "dora": True},
    },
    "rank above the width of k and v": {**WHOLE, "lora": {"init": "pissa", "r": 40}},
    "full": {**WHOLE, "method": "full"},
}
ROUNDING = 1e-5
"""Of float32 logits, relative to their range."""
QUANTISATION = 0.05
"""What 4 bits cost a random model of width 64, relative to the logits' range."""
BATCH = torch.tensor([[5, 6, 7, 8, 20, 90, 33, 41] * 4])


def recipe(changes: dict[str, Any]) -> Training:
    lora = {"r": 4, "alpha": 8, **changes.get("lora", {})}
    return Training(**{**changes, "lora": lora})


def float32() -> Hardware:
    """This machine, computing in the one dtype in which equal means equal."""
    return dataclasses.replace(this_machine(), dtype="float32")


@dataclass
class Trained:
    model: Any
    out: Path
    losses: list[float]


Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def biased_base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """The tiny Llama with biases on every linear layer, and its head a weight of its own."""
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(
        tiny_base, attention_bias=True, mlp_bias=True, tie_word_embeddings=False
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("biased")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def base(request: pytest.FixtureRequest, tiny_base: Path, biased_base: Path) -> Path:
    kind = request.node.callspec.params.get("kind", "") if hasattr(request.node, "callspec") else ""
    return biased_base if "bias" in kind else tiny_base


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Six steps; the checkpoints' folder and the artifact are new unless given."""

    def run(base: Path, training: Training, name: str = "a", root: Path | None = None) -> Trained:
        initial = (root or tmp_path / f"{name}-checkpoints") / INITIAL
        torch.manual_seed(training.seed)
        model = add_adapter(load_base(base, float32(), training), training, base, initial)
        model.train()
        guard, losses = GradientGuard(model), []
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.0)
        for _ in range(6):
            loss = model(input_ids=BATCH, labels=BATCH, use_cache=False).loss
            loss.backward()
            guard.check()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            assert guard.done or len(losses) == 1, f"no gradient yet: {list(guard.waiting)}"
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        save_adapter(model, out, training, base, initial)
        return Trained(model, out, losses)

    return run


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=BATCH, use_cache=False).logits


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest, relative to the range."""
    return float((actual - expected).abs().max() / (expected.max() - expected.min()))


def loaded(base: Path, out: Path) -> Any:
    """By stock PEFT or transformers, in float32."""
    if not (out / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, out)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_what_is_saved_is_what_was_trained(
    kind: str, base: Path, train: Train, tmp_path: Path
) -> None:
    training = recipe(KINDS[kind])
    trained = train(base, training)
    assert trained.losses[-1] < trained.losses[0] - 0.02
    expected = logits(trained.model)
    found = difference(logits(loaded(base, trained.out)), expected)
    assert found <= (ROUNDING if training.quantization == "none" else QUANTISATION)
    untrained = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert difference(logits(untrained), expected) > 10 * ROUNDING
    if training.quantization != "none" and training.lora.init == "default":
        again = PeftModel.from_pretrained(load_base(base, float32(), training), trained.out)
        assert difference(logits(again), expected) <= ROUNDING

    merged = tmp_path / "merged"
    merged.mkdir()
    merge(base, trained.out, merged)
    result = parity(base, trained.out, merged, [BATCH[0].tolist()])
    assert result["relative_difference"] <= TOLERANCE[stored_dtype(merged)]
    assert result["top_token_disagreements"] == 0


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa", "loftq", "int8", "full"])
def test_the_same_seed_gives_the_same_bytes(kind: str, base: Path, train: Train) -> None:
    first, second = (train(base, recipe(KINDS[kind]), name).out for name in ("a", "b"))
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()}
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_another_seed_gives_another_adapter(tiny_base: Path, train: Train) -> None:
    first, second = (train(tiny_base, recipe({**WHOLE, "seed": i}), str(i)).out for i in (0, 1))
    name = "adapter_model.safetensors"
    assert (first / name).read_bytes() != (second / name).read_bytes()


def test_all_linear_is_every_linear_layer_but_the_head(tiny_base: Path) -> None:
    training = recipe(WHOLE)
    model = add_adapter(load_base(tiny_base, float32(), training), training, tiny_base)
    trained = {n.split(".layers.")[1] for n, p in model.named_parameters() if p.requires_grad}
    layers = [f"self_attn.{x}_proj" for x in "qkvo"] + [
        f"mlp.{x}_proj" for x in ("gate", "up", "down")
    ]
    assert trained == {
        f"{i}.{layer}.lora_{x}.default.weight" for i in (0, 1) for layer in layers for x in "AB"
    }


def test_an_adapter_names_nothing_of_this_machine(
    tiny_base: Path, train: Train, tmp_path: Path
) -> None:
    out = train(tiny_base, recipe(KINDS["pissa"])).out
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    names = json.loads((out / "adapter_config.json").read_text())["target_modules"]
    assert len(names) == 14
    assert names == sorted(names), "PEFT keeps a set, which every process orders differently"
    for path in out.iterdir():
        assert str(tiny_base).encode() not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


def test_what_is_trained_is_float32(tiny_base: Path) -> None:
    hardware = dataclasses.replace(this_machine(), dtype="bfloat16")
    for kind in ("head", "dora", "pissa", "nf4", "full"):
        training = recipe(KINDS[kind])
        model = add_adapter(load_base(tiny_base, hardware, training), training, tiny_base)
        trained = {p.dtype for p in model.parameters() if p.requires_grad}
        assert trained == {torch.float32}, kind


def test_a_model_tuned_whole_keeps_the_dtype_of_its_base(
    tiny_base: Path, train: Train, tmp_path: Path
) -> None:
    base = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16).save_pretrained(base)
    trained = train(base, recipe(KINDS["full"]))
    assert {t.dtype for t in load_file(trained.out / "model.safetensors").values()} == {
        torch.bfloat16
    }
    model = AutoModelForCausalLM.from_pretrained(trained.out, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache, "the base's configuration, not that of training"
    assert difference(logits(model.float()), logits(trained.model)) < TOLERANCE["BF16"]


@pytest.mark.parametrize("kind", ["pissa", "loftq"])
def test_a_resumed_run_begins_from_the_same_matrices(
    kind: str, tiny_base: Path, tmp_path: Path
) -> None:
    training, kept = recipe(KINDS[kind]), tmp_path / "checkpoints" / INITIAL
    first = add_adapter(load_base(tiny_base, float32(), training), training, tiny_base, kept)
    # Another machine's SVD would find other matrices: what is kept counts, not the seed.
    other = training.model_copy(update={"seed": 7})
    again = add_adapter(load_base(tiny_base, float32(), other), other, tiny_base, kept)
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert [path.name for path in kept.parent.iterdir()] == [INITIAL]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "pissa" in kind or "loftq" in kind])
def test_before_training_the_adapter_leaves_the_original_base_as_it_is(
    kind: str, tiny_base: Path, tmp_path: Path
) -> None:
    training, kept = recipe(KINDS[kind]), tmp_path / INITIAL
    model = add_adapter(load_base(tiny_base, float32(), training), training, tiny_base, kept)
    save_adapter(model, tmp_path, training, tiny_base, kept)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    tolerance = ROUNDING if "dora" not in kind or "pissa" in kind else QUANTISATION
    assert difference(logits(loaded(tiny_base, tmp_path)), logits(base)) <= tolerance


def test_pissa_begins_as_the_base_with_its_principal_part_in_the_adapter(tiny_base: Path) -> None:
    training = recipe(KINDS["pissa"])
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = add_adapter(load_base(tiny_base, float32(), training), training, tiny_base)
    assert difference(logits(model), logits(base)) < ROUNDING
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    weight = base.model.layers[0].self_attn.q_proj.weight
    singular = torch.linalg.svdvals(weight)
    part = torch.linalg.svdvals(layer.get_delta_weight("default"))
    torch.testing.assert_close(part[:4], singular[:4], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(
        torch.linalg.svdvals(layer.base_layer.weight)[:4], singular[4:8], rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["loftq", "loftq, rslora, dora"])
def test_loftq_begins_nearer_to_the_base_than_4_bits_alone(kind: str, tiny_base: Path) -> None:
    loftq = recipe({**KINDS[kind], "lora": {**KINDS[kind]["lora"], "r": 32}})
    base = logits(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32))
    plain = logits(load_base(tiny_base, float32(), recipe(KINDS["nf4"])))
    repaired = add_adapter(load_base(tiny_base, float32(), loftq), loftq, tiny_base)
    assert difference(logits(repaired), base) < 0.6 * difference(plain, base)


@pytest.mark.parametrize("kind", ["pissa, rslora, dora", "loftq, rslora, dora"])
def test_doras_magnitude_is_that_of_the_weight_that_training_begins_from(
    kind: str, tiny_base: Path
) -> None:
    training = recipe(KINDS[kind])
    model = add_adapter(load_base(tiny_base, float32(), training), training, tiny_base)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        weight = dequantize_module_weight(layer.base_layer) + layer.get_delta_weight("default")
    magnitude = layer.lora_magnitude_vector["default"].weight.detach()
    torch.testing.assert_close(magnitude, weight.norm(dim=1), rtol=1e-5, atol=1e-6)


def test_loftq_knows_layers_that_are_stored_transposed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=2, initializer_range=0.2)
    ).save_pretrained(tmp_path)
    loftq = recipe({"quantization": "nf4", "lora": {"init": "loftq", "r": 32}})
    base = logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    plain = logits(load_base(tmp_path, float32(), loftq))
    repaired = add_adapter(load_base(tmp_path, float32(), loftq), loftq, tmp_path)
    assert difference(logits(repaired), base) < 0.6 * difference(plain, base)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("ddp", {"": 1}), ("zero2", {"": 1}), ("zero3", None), ("fsdp", None)],
)
def test_each_process_loads_onto_its_own_gpu_unless_weights_are_spread(
    strategy: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    training = Training(devices={"count": 2, "strategy": strategy})
    assert _device_map(training, dataclasses.replace(float32(), device="cuda")) == expected
    assert _device_map(training, float32()) is None


def test_an_architecture_without_the_hardwares_attention_is_loaded_with_its_own(
    tmp_path: Path,
) -> None:
    tiny = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "head_dim": 16}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model("gemma2", **tiny, **layers)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load_base(tmp_path, float32(), recipe(WHOLE))
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("lora", "where", "message"),
    [
        ({"targets": ["q_prj"]}, "lora.targets", "nearest are q_proj"),
        ({"targets": ["q_proj", "k_porj"]}, "lora.targets", "'k_porj'(.|\n)*k_proj"),
        ({"targets": r".*\.q_prj"}, "lora.targets", "nearest are q_proj"),
        ({"targets": ["zzz"]}, "lora.targets", "there are act_fn, down_proj, embed_tokens"),
        ({"targets": ["self_attn"]}, "lora", "LlamaAttention(.|\n)*linear or embedding layers"),
        ({"modules_to_save": ["lm_hed"]}, "lora.modules_to_save", "nearest are lm_head"),
        ({"modules_to_save": ["q_proj"]}, "lora.modules_to_save", "quantised"),
        ({"bias": "all"}, "lora.bias", "bias: none"),
        (
            {"init": "loftq", "targets": ["lm_head"]},
            "lora.targets",
            "of 4 bits, which(.|\n)*lm_head",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(
    lora: dict[str, Any], where: str, message: str, tiny_base: Path
) -> None:
    training = recipe({"quantization": "nf4", "lora": lora})
    with pytest.raises(UserError, match=message) as caught:
        add_adapter(load_base(tiny_base, float32(), training), training, tiny_base)
    assert caught.value.where == f"training.{where}"
