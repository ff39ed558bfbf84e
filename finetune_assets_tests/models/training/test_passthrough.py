"""`training.arguments`: every field of SFTConfig is offered, owned by a recipe key, or refused."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from finetune_assets.catalog import combinations
from finetune_assets.catalog.arguments import Arguments
from finetune_assets.catalog.config import Dataset
from finetune_assets.catalog.explain import valid_keys
from finetune_assets.catalog.trainer_keys import FIXED, FORMER, GONE, OWNED
from finetune_assets.catalog.training import Optimizer, Scheduler
from finetune_assets.errors import UserError
from finetune_assets.models.training.passthrough import require_valid

SAMPLES: dict[str, Any] = {
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-7,
    "optim_args": "momentum=0.9,nesterov=true",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "activation_offloading": True,
    "torch_empty_cache_steps": 10,
    "full_determinism": True,
    "data_seed": 7,
    "eval_on_start": True,
    "eval_delay": 5,
    "logging_first_step": True,
    "log_level": "info",
    "log_level_replica": "error",
    "debug": "underflow_overflow",
    "dataloader_num_workers": 2,
    "dataloader_prefetch_factor": 4,
    "dataloader_persistent_workers": True,
    "ddp_find_unused_parameters": True,
    "ddp_bucket_cap_mb": 50,
    "ddp_broadcast_buffers": False,
    "ddp_static_graph": True,
    "ddp_backend": "gloo",
    "ddp_timeout": 60,
}


def test_every_field_of_sftconfig_is_classified_once() -> None:
    from trl import SFTConfig

    fields = {field.name for field in dataclasses.fields(SFTConfig)}
    classes = [set(Arguments.__annotations__), set(OWNED), set(FIXED)]
    assert set().union(*classes) == fields, "say in catalog/trainer_keys.py what a new key is"
    assert sum(len(each) for each in classes) == len(fields), "a key is in two classes"
    former = set(FORMER) | set(GONE)
    assert not former & fields, "a former key is back"
    assert len(former) == len(FORMER) + len(GONE)


@pytest.mark.parametrize("recipe_key", sorted({*OWNED.values(), *FORMER.values()}))
def test_what_stands_for_a_key_is_a_key(recipe_key: str) -> None:
    path, _, value = recipe_key.partition(": ")
    *sections, name = path.split(".")
    assert name in valid_keys(tuple(sections))
    if value:
        section: Any = Dataset
        for each in sections:
            section = section.model_fields[each].annotation
        TypeAdapter(section.model_fields[name].annotation).validate_python(value)


def test_every_argument_is_taken_as_it_is() -> None:
    assert set(SAMPLES) == set(Arguments.__annotations__)
    assert require_valid(SAMPLES, "x.yaml") == SAMPLES


def test_defaults_of_sftconfig_are_of_the_declared_types() -> None:
    from trl import SFTConfig

    adapter = TypeAdapter(Arguments)
    for field in dataclasses.fields(SFTConfig):
        if field.name in Arguments.__annotations__ and field.default not in (None, ""):
            assert adapter.validate_python({field.name: field.default}) == {
                field.name: field.default
            }


def test_numbers_in_quotes_become_numbers() -> None:
    assert require_valid({"adam_epsilon": "1e-7", "ddp_timeout": "60"}, "x.yaml") == {
        "adam_epsilon": 1e-7,
        "ddp_timeout": 60,
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"adam_bta1": 0.9}, ["unknown key", "did you mean 'adam_beta1'?"]),
        ({"learning_rate": 1e-4}, ["has a key for it", "write `training.learning_rate`"]),
        ({"learning_rat": 1e-4}, ["did you mean 'learning_rate'?", "`training.learning_rate`"]),
        ({"bf16": True}, ["write `training.precision: bf16`"]),
        ({"deepspeed": "z.json"}, ["write `training.devices.strategy: zero3`"]),
        ({"output_dir": "out"}, ["checkpoints lie under", "remove it"]),
        ({"report_to": "wandb"}, ["MLflow", "remove it"]),
        ({"label_smoothing_factor": 0.1}, ["negative log-likelihood", "remove it"]),
        ({"warmup_ratio": 0.1}, ["another name here", "write `training.warmup_steps`"]),
        ({"evaluation_strategy": "epoch"}, ["write `training.evals_per_epoch`"]),
        ({"group_by_length": True}, ["no padding is computed", "remove it"]),
        ({"save_safetensors": True}, ["always saved as safetensors"]),
        ({"adam_beta1": "much"}, ["'training.arguments.adam_beta1' is 'much'", "valid number"]),
        ({"adam_beta2": 1.5}, ["'training.arguments.adam_beta2' is 1.5", "less than 1"]),
        ({"ddp_backend": "nccll"}, ["'nccll'", "did you mean 'nccl'?"]),
        ({"optim_args": "momentum"}, ["'training.arguments.optim_args' is 'momentum'"]),
        ({"lr_scheduler_kwargs": 3}, ["'training.arguments.lr_scheduler_kwargs' is 3"]),
        ({"adam_beta3": 1, "output_dir": "x"}, ["adam_beta3", "output_dir"]),
    ],
)
def test_errors_name_key_value_and_remedy(arguments: dict[str, Any], expected: list[str]) -> None:
    with pytest.raises(UserError) as error:
        require_valid(arguments, "x.yaml")
    for part in ["x.yaml: ", "training.arguments.", "remedy: ", *expected]:
        assert part in str(error.value)


def test_what_sftconfig_itself_refuses_is_an_error_with_the_key_to_blame() -> None:
    with pytest.raises(UserError, match=r"\.dataloader_prefetch_factor' is 2"):
        require_valid({"adam_beta1": 0.8, "dataloader_prefetch_factor": 2}, "x.yaml")


def test_check_asks_sftconfig(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import SFTConfig
    from typer.testing import CliRunner

    from finetune_assets.commands.cli import app

    recipe = project / "catalog" / "tiny.yaml"
    told = "training:\n  arguments: {adam_beta1: 0.8}\n"
    recipe.write_text(recipe.read_text().replace("training:\n", told))
    assert "answer is" in CliRunner().invoke(app, ["check", "tiny"]).output

    def refuse(self: Any) -> None:
        raise ValueError("not on a Sunday")

    monkeypatch.setattr(SFTConfig, "__post_init__", refuse)
    done = CliRunner().invoke(app, ["check", "tiny"])
    assert done.exit_code == 1
    cause = "'training.arguments.adam_beta1' is 0.8: SFTConfig refuses it: not on a Sunday"
    assert f"{recipe}: {cause}" in done.output


def test_asking_sets_up_no_device() -> None:
    from accelerate.state import PartialState

    before = dict(PartialState._shared_state)
    require_valid({"adam_beta1": 0.8, "ddp_backend": "gloo"}, "x.yaml")
    assert PartialState._shared_state == before


def test_optimizers_and_schedules_are_those_of_transformers() -> None:
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    assert set(get_args(Optimizer)) - {"auto"} <= {name.value for name in OptimizerNames}
    assert set(get_args(Scheduler)) <= {name.value for name in SchedulerType}


@pytest.mark.parametrize("name", get_args(Scheduler))
def test_options_of_schedules_are_those_of_transformers(name: str) -> None:
    from torch.optim.lr_scheduler import ReduceLROnPlateau
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    plateau = name == "reduce_lr_on_plateau"
    function: Any = ReduceLROnPlateau if plateau else TYPE_TO_SCHEDULER_FUNCTION[name]
    given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    taken = set(inspect.signature(function).parameters) - given
    assert set(combinations.SCHEDULER_OPTIONS.get(name, ())) == taken


@pytest.mark.parametrize("name", get_args(Optimizer)[1:])
def test_options_of_optimizers_are_those_of_transformers(name: str) -> None:
    """An option that the optimizer does not read makes no difference to what it is built with."""
    import torch
    from transformers import Trainer, TrainingArguments

    offered = combinations.OPTIMIZER_OPTIONS.get(name, ())
    known = sorted({option for each in combinations.OPTIMIZER_OPTIONS.values() for option in each})
    model = torch.nn.Linear(2, 2)

    def built(**arguments: Any) -> Any:
        made = TrainingArguments(output_dir="x", optim=name, use_cpu=True, **arguments)
        return Trainer.get_optimizer_cls_and_kwargs(made, model)[1]

    plain = built()
    assert {o for o in known if built(optim_args=f"{o}=0.123") != plain} == set(offered)
