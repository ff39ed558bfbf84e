"""How each strategy of several devices is told to accelerate and DeepSpeed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.planning import ranks
from finetune_assets.models.planning.hardware import Machine, resolve
from finetune_assets.models.planning.schedule import make_schedule
from finetune_assets.models.runs.accelerate_config import (
    accelerate_config,
    deepspeed_config,
    fit_optimizer,
)

GPUS = resolve(Machine(cuda=True, name="A100", memory_gb=80, cores=16, bf16=True, devices=4))
CPU = resolve(Machine(cuda=False, name="CPU", memory_gb=16, cores=8, bf16=False))


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [("ddp", "MULTI_GPU"), ("fsdp", "FSDP"), ("zero2", "DEEPSPEED"), ("zero3", "DEEPSPEED")],
)
def test_accelerate_reads_the_configuration_of_each_strategy(
    tmp_path: Path, strategy: Any, kind: str
) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    training = Training(devices={"count": 2, "strategy": strategy})  # type: ignore[arg-type]
    path = tmp_path / "accelerate.json"
    path.write_text(json.dumps(accelerate_config(training, GPUS, 2, tmp_path / "ds.json")))
    read = load_config_from_file(str(path))
    assert (read.distributed_type, read.num_processes, read.use_cpu) == (kind, 2, False)
    parsed = launch_command_parser().parse_args(["--config_file", str(path), "x.py"])
    arguments, _, _ = _validate_launch_command(parsed)
    assert arguments.use_fsdp == (strategy == "fsdp")
    assert arguments.use_deepspeed == strategy.startswith("zero")


def test_fsdp_divides_by_layer_and_sends_only_unchanged_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    devices = {"count": 2, "strategy": "fsdp"}

    def plugin(**recipe: Any) -> FullyShardedDataParallelPlugin:
        training = Training(devices=devices, **recipe)  # type: ignore[arg-type]
        config = accelerate_config(training, GPUS, 2)
        given = launch_command_parser().parse_args(["x.py"])
        for key, value in {**config, **config["fsdp_config"], "use_fsdp": True}.items():
            setattr(given, key, value)
        given.dynamo_backend, given.num_cpu_threads_per_process = "no", 1
        for key, value in prepare_multi_gpu_env(given).items():
            monkeypatch.setenv(key, value)
        return FullyShardedDataParallelPlugin()

    quantised = plugin()
    assert quantised.fsdp_version == 2
    assert quantised.reshard_after_forward is True
    assert quantised.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert quantised.state_dict_type.name == "SHARDED_STATE_DICT"
    assert not quantised.cpu_ram_efficient_loading
    assert plugin(quantization="none").cpu_ram_efficient_loading
    assert not plugin(quantization="none", lora={"init": "pissa"}).cpu_ram_efficient_loading


def test_deepspeed_is_told_batches_precision_and_what_lies_where() -> None:
    training = Training(devices={"count": 4, "strategy": "zero3"}, max_grad_norm=0.5)  # type: ignore[arg-type]
    schedule = make_schedule(1000, training, GPUS, devices=4)
    made = deepspeed_config(training, GPUS, schedule, 4)
    each = made["train_micro_batch_size_per_gpu"] * made["gradient_accumulation_steps"]
    assert made["train_batch_size"] == 4 * each == training.train_batch_size
    assert (made["bf16"]["enabled"], made["fp16"]["enabled"]) == (True, False)
    assert made["gradient_clipping"] == 0.5
    assert made["zero_optimization"]["stage"] == 3
    assert made["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    assert "offload_optimizer" not in made["zero_optimization"]
    assert "auto" not in json.dumps(made), "weights are divided before transformers fills it in"

    paged = training.model_copy(update={"optim": "paged_adamw_32bit"})
    paged.devices.strategy = "zero2"
    old = replace(GPUS, dtype="float16")
    made = deepspeed_config(paged, old, schedule, 4)
    assert (made["bf16"]["enabled"], made["fp16"]["enabled"]) == (False, True)
    assert made["zero_optimization"]["stage"] == 2
    assert made["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("recipe", "hardware", "said"),
    [
        ({"strategy": "zero2"}, GPUS, "pip install deepspeed"),
        ({"strategy": "zero3"}, CPU, "needs GPUs"),
        ({"strategy": "fsdp", "quantization": "int8"}, GPUS, "not int8"),
        ({"strategy": "fsdp", "optim": "paged_adamw_8bit"}, GPUS, "write `optim: auto`"),
    ],
)
def test_what_a_strategy_cannot_do_is_said_at_once(
    recipe: dict[str, Any], hardware: Any, said: str
) -> None:
    devices = {"count": 2, "strategy": recipe.pop("strategy")}
    with pytest.raises(UserError, match=said):
        fit_optimizer(Training(devices=devices, **recipe), hardware)  # type: ignore[arg-type]


def test_divided_optimizers_are_torchs_own() -> None:
    devices = {"count": 2, "strategy": "fsdp"}
    assert fit_optimizer(Training(devices=devices), GPUS).optim == "adamw_torch_fused"  # type: ignore[arg-type]
    assert fit_optimizer(Training(devices=devices, optim="sgd"), GPUS).optim == "sgd"  # type: ignore[arg-type]
    assert fit_optimizer(Training(devices={"count": 2}), GPUS).optim == "auto"  # type: ignore[arg-type]


def test_as_many_processes_as_the_recipe_says_or_the_machine_has_gpus() -> None:
    def wanted(count: Any, hardware: Any) -> int:
        return ranks.wanted(Training(devices={"count": count}), hardware)  # type: ignore[arg-type]

    assert (wanted("auto", GPUS), wanted("auto", CPU), wanted(3, GPUS), wanted(3, CPU)) == (
        4,
        1,
        3,
        3,
    )
    with pytest.raises(UserError, match=r"5 GPUs are asked for, and this machine shows 4"):
        wanted(5, GPUS)
