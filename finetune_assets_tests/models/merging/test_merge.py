"""Merged models are their adapters' equals, load anywhere, and refuse what they cannot be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from finetune_assets.errors import UserError
from finetune_assets.models.bases.weights import INDEX, stored_dtype
from finetune_assets.models.merging.merge import merge, parity
from finetune_assets.models.records import TOLERANCE

PROMPTS = [[5, 6, 7, 8, 20, 90, 33, 41], [9, 8, 7]]


def adapt(base: Path, out: Path, **options: Any) -> Path:
    """An adapter of stock PEFT, every trained tensor moved away from where it begins."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        **{"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]} | options
    )
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(out, save_embedding_layers=False)
    return out


def merged(base: Path, adapter: Path, out: Path) -> dict[str, Any]:
    out.mkdir()
    return merge(base, adapter, out) | parity(base, adapter, out, PROMPTS)


def load(folder: Path) -> Any:
    """As the registry and evaluation do; nothing may be left to chance."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model


@pytest.fixture(scope="module")
def bf16_base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """The tiny Llama in bf16 and several shards."""
    folder = tmp_path_factory.mktemp("bf16")
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def gpt2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers are stored transposed, and have biases."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2)).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True, "target_modules": "all-linear"},
        {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.k_proj": 3}, "lora_alpha": 5}
        | {"alpha_pattern": {"v_proj": 16}, "target_modules": ["q_proj", "k_proj", "v_proj"]},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 7}, "use_rslora": True},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
        {"target_modules": ["lm_head", "q_proj"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["norm", "mlp"]},
    ],
    ids=str,
)
def test_the_merged_model_is_the_adapters_equal(
    options: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    adapter = adapt(tiny_base, tmp_path / "adapter", **options)
    result = merged(tiny_base, adapter, tmp_path / "merged")
    assert result["relative_difference"] < 1e-5
    assert result["top_token_disagreements"] == 0
    model = load(tmp_path / "merged")
    named = {n for names in options.values() if isinstance(names, list) for n in names}
    untied = bool({"lm_head", "embed_tokens"} & named)
    assert model.config.tie_word_embeddings != untied
    assert result["untied"] == (["lm_head.weight"] if untied else [])
    plain = AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = torch.tensor([PROMPTS[0]])
    with torch.inference_mode():
        assert float((model(ids).logits - plain(ids).logits).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "options",
    [{"fan_in_fan_out": True}, {"fan_in_fan_out": True, "use_dora": True, "bias": "all"}],
    ids=str,
)
def test_layers_that_are_stored_transposed(
    options: dict[str, Any], gpt2_base: Path, tmp_path: Path
) -> None:
    targets = ["c_attn", "c_proj"]
    adapter = adapt(gpt2_base, tmp_path / "adapter", target_modules=targets, **options)
    result = merged(gpt2_base, adapter, tmp_path / "merged")
    assert result["relative_difference"] < 1e-5
    assert result["merged_layers"] == 6
    load(tmp_path / "merged")
    # As an adapter that was trained over 4 bits says, whose layers are not stored so.
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": False}))
    assert merged(gpt2_base, adapter, tmp_path / "again")["relative_difference"] < 1e-5


SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "gpt_neox"])
@pytest.mark.parametrize(
    "options", [{}, {"modules_to_save": ["lm_head"], "use_rslora": True}], ids=str
)
def test_files_that_name_and_divide_tensors_otherwise_than_the_model(
    architecture: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Experts are stored one by one and adapted as a stack; older names are kept in files."""
    torch.manual_seed(0)
    base = tmp_path / "base"
    config = AutoConfig.for_model(architecture, **SMALL)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    adapter = adapt(base, tmp_path / "adapter", target_modules="all-linear", **options)
    result = merged(base, adapter, tmp_path / "merged")
    assert result["relative_difference"] < 1e-5
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    original = load_file(base / "model.safetensors")
    assert weights.keys() == original.keys()
    same = {name for name, tensor in weights.items() if torch.equal(tensor, original[name])}
    assert not any("experts" in name or "proj" in name for name in same)
    load(tmp_path / "merged")


def test_files_that_leave_out_the_first_part_of_names(gpt2_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(gpt2_base, tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    short["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)  # older files hold masks too
    save_file(short, base / "model.safetensors", metadata={"format": "pt"})
    adapter = adapt(base, tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True)
    assert merged(base, adapter, tmp_path / "merged")["relative_difference"] < 1e-5
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == short.keys()


@pytest.mark.parametrize("changed", ["lm_head", "embed_tokens"])
def test_a_tied_head_that_is_stored_too(changed: str, tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    adapter = adapt(base, tmp_path / "adapter", modules_to_save=[changed])
    assert merged(base, adapter, tmp_path / "merged")["relative_difference"] < 1e-5


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_shards_dtypes_and_tokenizer_stay_those_of_the_base(
    options: dict[str, Any], bf16_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    base = Path(shutil.copytree(bf16_base, tmp_path / "base", dirs_exist_ok=True))
    # What some publishers put beside, in other names; transformers reads the index alone.
    save_file({"other": torch.zeros(2)}, base / "consolidated.safetensors")
    (base / "manifest.json").write_text("{}")
    adapter = adapt(base, tmp_path / "adapter", target_modules="all-linear", **options)
    out = tmp_path / "merged"
    result = merged(base, adapter, out)
    assert result["relative_difference"] < TOLERANCE[stored_dtype(out)]
    assert stored_dtype(out) == "BF16"
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()} - {
        "manifest.json",
        "consolidated.safetensors",
    }
    index = json.loads((out / INDEX).read_text())
    sizes = {}
    for shard in sorted(out.glob("*.safetensors")):
        tensors = load_file(shard)
        assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
        assert all(index["weight_map"][name] == shard.name for name in tensors)
        sizes |= {name: tensor.nbytes for name, tensor in tensors.items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert ("lm_head.weight" in sizes) == bool(options)
    load(out)
    assert AutoTokenizer.from_pretrained(out).chat_template


def test_a_model_tuned_whole_is_taken_as_it_is(bf16_base: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    model = AutoModelForCausalLM.from_pretrained(bf16_base, dtype=torch.bfloat16)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tuned, max_shard_size="80KB")
    out = tmp_path / "merged"
    result = merged(bf16_base, tuned, out)
    assert result["max_logit_difference"] == 0
    for shard in tuned.glob("*.safetensors"):
        assert (out / shard.name).samefile(shard), "the weights lie on the disk once"
    assert not list(set(out.glob("*.safetensors")) - {out / p.name for p in tuned.iterdir()})
    load(out)
    assert AutoTokenizer.from_pretrained(out).chat_template


def test_an_adapter_of_another_base_is_refused(
    tiny_base: Path, gpt2_base: Path, tmp_path: Path
) -> None:
    adapter = adapt(gpt2_base, tmp_path / "adapter", target_modules=["c_fc"], fan_in_fan_out=True)
    (tmp_path / "merged").mkdir()
    with pytest.raises(
        UserError, match=r"no weight for 4 tensors.*h\.0\.mlp\.c_fc(.|\n)*this base"
    ):
        merge(tiny_base, adapter, tmp_path / "merged")


def test_nothing_of_an_adapter_is_left_out(tiny_base: Path, tmp_path: Path) -> None:
    """What this merge does not know, such as biases of the adapter's own, is no silent loss."""
    adapter = adapt(tiny_base, tmp_path / "adapter", lora_bias=True)
    (tmp_path / "merged").mkdir()
    with pytest.raises(UserError, match=r"lora_B\.bias"):
        merge(tiny_base, adapter, tmp_path / "merged")


def test_other_methods_than_lora_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    targets = {"target_modules": ["q_proj"], "feedforward_modules": []}
    get_peft_model(model, IA3Config(**targets)).save_pretrained(tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    with pytest.raises(UserError, match="IA3"):
        merge(tiny_base, tmp_path / "adapter", tmp_path / "merged")


def test_parity_sees_a_merge_that_is_wrong(tiny_base: Path, tmp_path: Path) -> None:
    adapter = adapt(tiny_base, tmp_path / "adapter")
    out = tmp_path / "merged"
    merged(tiny_base, adapter, out)
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"] *= 1.2
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    result = parity(tiny_base, adapter, out, PROMPTS)
    assert result["relative_difference"] > TOLERANCE["F32"]
