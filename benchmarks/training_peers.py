"""Peers of the training engine: how each is installed, and its own command line for one recipe."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.training_speed import ROOT, Command

VENVS = ROOT / "build" / "peers"
TORCH = "torch==2.13.0"
PACKAGES = {
    # LitGPT's command line needs `requests` and does not ask for it.
    "litgpt": ["litgpt==0.5.13", "requests", "bitsandbytes"],
    "llamafactory": ["llamafactory==0.9.5", "bitsandbytes"],
}


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class Unable(Exception):
    """A peer cannot do what is asked; says why."""


def bin_of(peer: str) -> Path:
    """Folder of the peer's programs; installs it into a venv of its own the first time."""
    folder = VENVS / peer
    if not (folder / "installed").exists():
        print(f"installing {', '.join(PACKAGES[peer])} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "pip", "install", "-q", "--disable-pip-version-check"]
        # First, so that its CPU build is kept.
        subprocess.run([*pip, TORCH], check=True)
        subprocess.run([*pip, TORCH, *PACKAGES[peer]], check=True)
        # Builds on PyPI are for CUDA and fail beside torch's CPU build; text needs neither.
        subprocess.run([pip[0], "uninstall", "-q", "-y", "torchvision"], check=True)
        for library in folder.glob("lib/*/site-packages/torchaudio/lib/_torchaudio.*"):
            library.unlink()
        (folder / "installed").touch()
    return folder / "bin"


def trl(work: Path, recipe: dict[str, Any], quantization: str, out: Path) -> Command:
    """`trl sft` of this environment."""
    argv = [
        *(str(Path(sys.executable).parent / "trl"), "sft"),
        *("--model_name_or_path", str(work / "base")),
        *("--dataset_name", str(work / "conversations")),
        *("--output_dir", str(out / "trained"), "--report_to", "none"),
        *("--use_peft", "--lora_r", str(recipe["r"]), "--lora_alpha", str(2 * recipe["r"])),
        *("--lora_dropout", "0", "--lora_target_modules", "all-linear"),
        *("--max_length", str(recipe["max_length"])),
        *("--per_device_train_batch_size", str(recipe["batch"])),
        *("--num_train_epochs", "1", "--learning_rate", str(recipe["learning_rate"])),
        *("--lr_scheduler_type", "cosine", "--seed", "0", "--logging_steps", "1"),
        *("--use_cpu", "--bf16", "true"),
    ]
    if quantization == "nf4":
        argv += ["--load_in_4bit", "--bnb_4bit_quant_type", "nf4", "--use_bnb_nested_quant"]
    return Command(
        argv,
        step=re.compile(r"'loss':"),
        tokens=lambda text: int(float(re.findall(r"'num_tokens': '?([\d.e+]+)", text)[-1])),
        trained=lambda: out / "trained",
        # Its launcher gives a process one core, unless told otherwise.
        environment={"OMP_NUM_THREADS": str(os.cpu_count())},
    )


def litgpt(work: Path, recipe: dict[str, Any], quantization: str, out: Path) -> Command:
    """`litgpt finetune_lora`, which reads a checkpoint in a format of its own."""
    if quantization != "none":
        raise Unable("LitGPT quantises on CUDA only")
    name, program = "SmolLM2-135M-Instruct", str(bin_of("litgpt") / "litgpt")
    checkpoint = work / "litgpt" / name
    if not (checkpoint / "lit_model.pth").exists():
        shutil.copytree(work / "base", checkpoint, dirs_exist_ok=True)
        subprocess.run([program, "convert_to_litgpt", checkpoint, "--model_name", name], check=True)
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": recipe["learning_rate"]}}
    argv = [
        *(program, "finetune_lora", str(checkpoint), "--out_dir", str(out / "trained")),
        *("--precision", "bf16-true", "--seed", "0"),
        *("--lora_r", str(recipe["r"]), "--lora_alpha", str(2 * recipe["r"])),
        *("--lora_dropout", "0", "--lora_query", "true", "--lora_key", "true"),
        *("--lora_value", "true", "--lora_projection", "true", "--lora_mlp", "true"),
        *("--data", "JSON", "--data.json_path", str(work / "instructions")),
        *("--data.mask_prompt", "true", "--data.prompt_style", "smollm2"),
        *("--train.epochs", "1", "--train.global_batch_size", str(recipe["batch"])),
        *("--train.lr_warmup_steps", "1", "--train.max_seq_length", str(recipe["max_length"])),
        *("--optimizer", json.dumps(adamw)),
    ]

    def merged() -> Path:
        """By its own tools: the adapter is merged already, and converted to Hugging Face names."""
        converted = out / "converted"
        subprocess.run(
            [program, "convert_from_litgpt", out / "trained" / "final", converted],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return converted / "model.pth"

    return Command(
        argv,
        step=re.compile(r"iter time: .*\(step\)"),
        tokens=lambda text: int(re.findall(r"Tokens w/ Prompt\D*(\d+)", text)[0]),
        trained=merged,
    )


def llamafactory(work: Path, recipe: dict[str, Any], quantization: str, out: Path) -> Command:
    """`llamafactory-cli train`, which reads everything from a file."""
    program = bin_of("llamafactory") / "llamafactory-cli"
    columns = {"prompt": "instruction", "response": "output"}
    info = {"rows": {"file_name": "train.json", "columns": columns}}
    (work / "instructions" / "dataset_info.json").write_text(json.dumps(info))
    settings = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(work / "base"),
        "finetuning_type": "lora",
        "lora_target": "all",
        "lora_rank": recipe["r"],
        "lora_alpha": 2 * recipe["r"],
        "dataset_dir": str(work / "instructions"),
        "dataset": "rows",
        "template": "smollm2",
        # Its own has a full stop more than the model's template.
        "default_system": SYSTEM,
        "cutoff_len": recipe["max_length"],
        "output_dir": str(out / "trained"),
        "report_to": "none",
        "per_device_train_batch_size": recipe["batch"],
        "num_train_epochs": 1,
        "learning_rate": recipe["learning_rate"],
        "lr_scheduler_type": "cosine",
        "seed": 0,
        "bf16": True,
        "use_cpu": True,
        "logging_steps": 1,
        "include_num_input_tokens_seen": "non_padding",
    }
    if quantization == "nf4":
        settings |= {"quantization_bit": 4, "quantization_method": "bnb"}
    file = out / "recipe.yaml"
    file.write_text(json.dumps(settings))
    return Command(
        [str(program), "train", str(file)],
        step=re.compile(r"'loss':"),
        tokens=lambda _: json.loads((out / "trained" / "trainer_state.json").read_text())[
            "num_input_tokens_seen"
        ],
        trained=lambda: out / "trained",
    )


PEERS: dict[str, Callable[[Path, dict[str, Any], str, Path], Command]] = {
    "trl": trl,
    "litgpt": litgpt,
    "llamafactory": llamafactory,
}
