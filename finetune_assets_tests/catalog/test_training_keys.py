"""`training:` of a dataset file: near misses, and combinations that make no sense."""

import json

import pytest

from finetune_assets.catalog.load import json_schema, parse
from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError

HEAD = "sources: rows.jsonl\nbase: b\ntraining:\n"


def error_of(*lines: str) -> str:
    with pytest.raises(UserError) as error:
        parse(HEAD + "".join(f"  {line}\n" for line in lines), "x.yaml")
    assert str(error.value).count("remedy:") == 1
    return str(error.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("learning_rat: 1e-4", ["'training.learning_rat'", "did you mean 'learning_rate'?"]),
        ("lr: 1e-4", ["write `training.learning_rate`"]),
        ("warmup_ratio: 0.1", ["write `training.warmup_steps`"]),
        ("lora_r: 8", ["write `training.lora.r`"]),
        ("r: 8", ["did you mean 'training.lora.r'?"]),
        ("metrics: [bleu]", ["did you mean 'evaluation.metrics'?"]),
        ("bf16: true", ["write `training.precision: bf16`"]),
        ("fsdp: full_shard", ["write `training.devices.strategy: fsdp`"]),
        ("report_to: wandb", ["MLflow", "remove it"]),
        ("adam_beta1: 0.9", ["write it under `training.arguments`"]),
        ("adam_bta1: 0.9", ["'adam_beta1'", "write it under `training.arguments`"]),
        ("arguments: {adam_bta1: 0.9}", ["did you mean 'adam_beta1'?"]),
        ("arguments: {learning_rate: 0.9}", ["write `training.learning_rate`"]),
        ("arguments: {zzz: 0.9}", ["valid here: adam_beta1, "]),
        ("zzz: 0.9", ["valid here: method, "]),
        ("lora: {lora_alpha: 3}", ["'training.lora.lora_alpha'", "write `training.lora.alpha`"]),
        ("lora: {rank: 3}", ["'training.lora.rank'", "valid here: r, alpha"]),
        ("optim: paged_adamw", ["'paged_adamw'", "did you mean 'paged_adamw_8bit'?"]),
        ("optim: adamw_hf", ["'adamw_hf'", "did you mean 'adamw_"]),
        ("lr_scheduler_type: cosin", ["did you mean 'cosine'?"]),
        ("quantization: nf8", ["did you mean 'nf4'?"]),
        ("gradient_checkpointing: yep", ["is 'yep'", "valid boolean", "or Input should be 'auto'"]),
        ("lora: {init: pisa}", ["did you mean 'pissa'?"]),
        ("sample_prompts: ['']", ["'training.sample_prompts.0' is ''"]),
        ("arguments: {ddp_timeout: soon}", ["'training.arguments.ddp_timeout' is 'soon'"]),
    ],
)
def test_near_misses_name_what_was_meant(line: str, expected: list[str]) -> None:
    said = error_of("seed: 1", line)
    for part in ["x.yaml:5: ", *expected]:
        assert part in said


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["method: full"], ["x.yaml:4", "`quantization: none`"]),
        (["quantization: nf4", "lora: {init: pissa}"], ["x.yaml:4", "`quantization: none`"]),
        (["seed: 1", "lora: {init: pissa}"], ["x.yaml:5", "`quantization: none`"]),
        (["lora:", "  init: loftq", "quantization: int8"], ["x.yaml:6", "`quantization: nf4`"]),
        (["lora: {dora: true}", "quantization: int8"], ["x.yaml:4", "8-bit", "`none`"]),
        (["seed: -1"], ["x.yaml:4", "greater than or equal to 0"]),
        (["seed: 99999999999999999999"], ["x.yaml:4", "less than 4294967296"]),
        (["learning_rate: .inf"], ["x.yaml:4", "finite number"]),
        (["num_train_epochs: .inf"], ["x.yaml:4", "finite number"]),
        (["price_per_hour: .nan"], ["x.yaml:4", "finite number"]),
        (
            ["lora: 16"],
            ["x.yaml:4", "a block of keys is expected", "write below 'training.lora'", "alpha"],
        ),
        (
            [
                "per_device_train_batch_size: 2",
                "gradient_accumulation_steps: 3",
                "train_batch_size: 7",
            ],
            ["x.yaml:6", "any number of devices", "leave it out"],
        ),
        (["max_length: -5"], ["x.yaml:4", "write a value greater than or equal to 16"]),
        (["quantization: 4"], ["x.yaml:4", "write one of 'nf4', 'fp4', 'int8' or 'none'"]),
        (["lora:", "  targets: []"], ["x.yaml:5", "at least 1 item"]),
        (["lora:", "  targets: [all-linear]"], ["x.yaml:5", "without a list"]),
        (["lora:", "  targets: q_proj"], ["x.yaml:5", "`[q_proj]`"]),
        (["lora:", "  targets: ''"], ["x.yaml:5", "regular expression"]),
        (["lora:", "  targets: '(q_proj'"], ["x.yaml:5", "no regular expression"]),
        (["lora:", "  modules_to_save: ['']"], ["x.yaml:5", "modules_to_save"]),
        (["gradient_accumulation_steps: 2"], ["x.yaml:4", "`per_device_train_batch_size`"]),
        (["train_batch_size: 16", "per_device_train_batch_size: 6"], ["x.yaml:5", "no multiple"]),
        (["per_device_train_batch_size: 32"], ["x.yaml:4", "`train_batch_size` 16"]),
        (["max_steps: 10", "eval_steps: 20"], ["x.yaml:5", "above `max_steps` 10"]),
        (["max_steps: 10", "warmup_steps: 10"], ["x.yaml:5", "not below `max_steps` 10"]),
        (["warmup_steps: 2.5"], ["x.yaml:4", "whole steps"]),
        (
            ["load_best_model_at_end: false", "early_stopping_patience: 2"],
            ["x.yaml:4", "`load_best_model_at_end: true`"],
        ),
        (["early_stopping_threshold: 0.1"], ["x.yaml:4", "`early_stopping_patience`"]),
        (["devices: {strategy: zero3}"], ["x.yaml:4", "`devices.count`"]),
        (["max_length: 64", "documents: {overlap: 32}"], ["x.yaml:5", "half of `max_length`"]),
        (["warmup_steps: 5", "lr_scheduler_type: constant"], ["x.yaml:4", "has no warmup"]),
        (["lr_scheduler_type: cosine_with_min_lr"], ["x.yaml:4", "needs min_lr_rate or min_lr"]),
        (
            ["arguments: {lr_scheduler_kwargs: {power: 2}}"],
            ["x.yaml:4", "`cosine` has no option power; it has num_cycles"],
        ),
        (
            ["lr_scheduler_type: warmup_stable_decay"],
            ["x.yaml:4", "needs num_decay_steps", "lr_scheduler_kwargs"],
        ),
        (
            ["arguments: {optim_args: 'momentum=0.9'}"],
            ["x.yaml:4", "`auto` has no option momentum"],
        ),
        (
            ["optim: sgd", "arguments: {optim_args: 'momentum=0.9,alpha=1'}"],
            ["x.yaml:5", "`sgd` has no option alpha ", "it has momentum, "],
        ),
        (["optim: sgd", "arguments: {adam_beta1: 0.5}"], ["x.yaml:5", "`adam_beta1`"]),
        (
            ["arguments: {dataloader_prefetch_factor: 2}"],
            ["x.yaml:4", "`dataloader_num_workers`"],
        ),
        (
            [
                "gradient_checkpointing: false",
                "arguments: {activation_checkpointing_kwargs: {use_reentrant: true}}",
            ],
            ["x.yaml:5", "`gradient_checkpointing` is off"],
        ),
    ],
)
def test_combinations_without_sense_are_errors(lines: list[str], expected: list[str]) -> None:
    said = error_of(*lines)
    for part in expected:
        assert part in said


@pytest.mark.parametrize(
    "line",
    [
        "lora: {targets: [q_proj, v_proj]}",
        "lora: {targets: '.*layers\\.[0-7]\\..*(q|v)_proj'}",
        "max_steps: null",
        "lr_scheduler_type: constant",
        "{per_device_train_batch_size: 3, gradient_accumulation_steps: 5}",
        "{lr_scheduler_type: cosine_with_min_lr, "
        "arguments: {lr_scheduler_kwargs: {min_lr_rate: 0.1}}}",
        "{optim: sgd, arguments: {optim_args: 'momentum=0.9, nesterov=true'}}",
        "{optim: lion_8bit, arguments: {adam_beta1: 0.9}}",
        "{devices: {count: auto, strategy: fsdp}}",
    ],
)
def test_what_makes_sense_is_valid_and_stays_so_when_resolved(line: str) -> None:
    training = parse(f"{HEAD}  {line}\n", "x.yaml").training
    again = json.loads(json.dumps(training.model_dump(mode="json")))
    assert Training.model_validate(again) == training


def test_numbers_may_be_written_as_in_papers() -> None:
    training = parse(f"{HEAD}  arguments: {{adam_epsilon: 1e-8}}\n", "x.yaml").training
    assert training.arguments["adam_epsilon"] == 1e-8


def test_editors_know_the_keys_that_are_passed_through() -> None:
    schema = json_schema()["$defs"]["Arguments"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["adam_beta2"]["exclusiveMaximum"] == 1
