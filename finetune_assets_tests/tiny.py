"""A tiny random Llama with a real tokenizer and chat template, made in a second."""

import json
from pathlib import Path

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_base(folder: Path, *, template: str | None = CHATML, adds_bos: bool = False) -> Path:
    """Write a model of 2 layers and a byte-level tokenizer of 300 tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["what is the answer to this question"], trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    if template is not None:
        fast.chat_template = template
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int = 60, answer: str = "the answer is {}") -> Path:
    """Prompt/completion rows with different prompts."""
    rows = (
        {"prompt": f"what is question {i}?", "completion": answer.format(i % 7)}
        for i in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


RECIPE = """\
sources:
  - path: rows.jsonl
base: {base}
splits: {{validation: 0.15, test: 0.15}}
training:
  num_train_epochs: 4
  max_length: 64
  train_batch_size: 4
  per_device_train_batch_size: 2
  learning_rate: 0.01
  evals_per_epoch: 1
  lora: {{r: 4, alpha: 8}}
evaluation: {{metrics: [exact_match], max_new_tokens: 8, max_rows: 6}}
promotion: {{metric: loss}}
"""

RECIPE_SOURCES = "sources:\n  - path: rows.jsonl\n"
"""The part of the recipe that says where rows are."""
