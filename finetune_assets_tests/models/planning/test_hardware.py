"""The one hardware function, for machines that are not here too, and what it leads to."""

from pathlib import Path

import pytest

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.hardware import Machine, probe, resolve
from finetune_assets.models.planning.schedule import make_schedule
from finetune_assets.models.training.arguments import arguments as training_arguments

H100 = Machine(
    cuda=True, name="H100", memory_gb=80, cores=16, bf16=True, flash_attention=True, liger=True
)
T4 = Machine(cuda=True, name="T4", memory_gb=15, cores=4, bf16=False)
LAPTOP = Machine(cuda=False, name="CPU", memory_gb=16, cores=8, bf16=False)
SERVER = Machine(cuda=False, name="CPU", memory_gb=64, cores=32, bf16=True)


@pytest.mark.parametrize(
    ("machine", "device", "dtype", "attention", "optimizer"),
    [
        (H100, "cuda", "bfloat16", "flash_attention_2", "paged_adamw_8bit"),
        (T4, "cuda", "float16", "sdpa", "paged_adamw_8bit"),
        (LAPTOP, "cpu", "float32", "sdpa", "adamw_torch_fused"),
        (SERVER, "cpu", "bfloat16", "sdpa", "adamw_torch_fused"),
    ],
)
def test_each_machine_gets_what_suits_it(
    machine: Machine, device: str, dtype: str, attention: str, optimizer: str
) -> None:
    found = resolve(machine)
    assert (found.device, found.dtype, found.attention, found.optimizer) == (
        device,
        dtype,
        attention,
        optimizer,
    )


@pytest.mark.parametrize("machine", [H100, T4, LAPTOP, SERVER])
def test_the_arguments_follow_the_hardware(machine: Machine) -> None:
    training, hardware = Training(max_length=512, train_batch_size=16), resolve(machine)
    schedule = make_schedule(100, training, hardware)
    arguments = training_arguments(training, hardware, schedule, Path("out"), fused=False)
    assert schedule.micro_batch * schedule.accumulation == 16
    assert arguments["use_cpu"] == (not machine.cuda)
    assert arguments["bf16"] == (hardware.dtype == "bfloat16")
    assert arguments["fp16"] == (hardware.dtype == "float16")
    assert arguments["optim"] == hardware.optimizer
    assert arguments["use_liger_kernel"] == machine.liger


@pytest.mark.parametrize(("batch", "of_a_step"), [(3, 3), (5, 5), (12, 12), (16, 16), (1000, 24)])
def test_a_step_has_the_contexts_that_were_asked_for(batch: int, of_a_step: int) -> None:
    training = Training(max_length=512, train_batch_size=batch)
    for machine in (H100, T4, LAPTOP, SERVER):
        schedule = make_schedule(24, training, resolve(machine))
        assert schedule.micro_batch * schedule.accumulation == of_a_step


def test_a_long_context_still_gets_a_batch_of_one() -> None:
    assert resolve(T4).micro_batch(max_length=32768, limit=16) == 1


def test_this_machine_can_be_asked() -> None:
    machine = probe()
    assert machine.cores >= 1
    assert machine.memory_gb > 0


def test_layers_that_compute_in_bf16_by_themselves_need_no_autocast() -> None:
    training, hardware = Training(), resolve(SERVER)
    schedule = make_schedule(100, training, hardware)
    fused = training_arguments(training, hardware, schedule, Path("out"), fused=True)
    assert not fused["bf16"]


def test_the_recipe_s_own_choices_win() -> None:
    training = Training(optim="adamw_torch", precision="fp32", arguments={"adam_beta2": 0.95})
    hardware = resolve(H100)
    schedule = make_schedule(100, training, hardware)
    made = training_arguments(training, hardware, schedule, Path("out"), fused=False)
    assert (made["optim"], made["bf16"], made["adam_beta2"]) == ("adamw_torch", False, 0.95)


@pytest.mark.parametrize(("tokens", "pays"), [(20_000, False), (50_000_000, True)])
def test_long_runs_are_compiled(tokens: int, pays: bool) -> None:
    from finetune_assets.models.planning.choices import pays_to_compile

    assert pays_to_compile(Training(), resolve(H100), tokens) is pays
    assert pays_to_compile(Training(torch_compile=not pays), resolve(H100), tokens) is not pays
    assert not pays_to_compile(Training(), resolve(SERVER), tokens)


@pytest.mark.parametrize(
    ("wanted", "steps", "made"),
    [(0.03, 108, 4), (0.03, 30, 0), (0.1, 10, 1), (5, 30, 5), (0, 9, 0)],
)
def test_a_warmup_of_less_than_a_step_is_none(wanted: float, steps: int, made: int) -> None:
    """A run of one step would have a learning rate of 0, and learn nothing."""
    training = Training(warmup_steps=wanted, max_steps=steps)
    hardware = resolve(SERVER)
    schedule = make_schedule(100, training, hardware)
    given = training_arguments(training, hardware, schedule, Path("out"), fused=True)
    assert given["warmup_steps"] == made
