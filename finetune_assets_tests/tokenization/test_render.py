"""What carries loss: the assistant's turns through their stop token, and nothing else."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from finetune_assets.errors import UserError
from finetune_assets.tokenization.render import (
    IGNORED,
    prompt_ids,
    require_template,
    stop_token_ids,
    tokenize,
)
from finetune_assets_tests.tiny import CHATML, make_base

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "second answer"},
]


def test_loss_is_on_the_answers_and_their_stop_tokens(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokens = tokenize(tokenizer, CHAT)
    learned = tokenizer.decode([t for t in tokens.labels if t != IGNORED])
    assert learned == "first answer<|im_end|>second answer<|im_end|>"


def test_the_prompt_is_what_precedes_the_answer_in_training(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    ids = prompt_ids(tokenizer, CHAT[:4])
    assert tokenize(tokenizer, CHAT).input_ids[: len(ids)] == ids


def test_a_template_that_prints_bos_gives_one_bos(tmp_path: Path) -> None:
    """Also where the tokenizer would add its own."""
    template = "{{ bos_token }}" + CHATML.replace("<|im_start|>", "")
    base = make_base(tmp_path / "b", template=template, adds_bos=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenize(tokenizer, CHAT).input_ids.count(tokenizer.bos_token_id) == 1


def test_the_stop_token_is_learned_although_it_is_also_the_padding(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token_id in tokenize(tokenizer, CHAT).labels
    assert stop_token_ids(tokenizer, "x") == [tokenizer.eos_token_id]


def test_a_template_that_closes_no_turn_is_an_error(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokenizer = AutoTokenizer.from_pretrained(make_base(tmp_path / "b", template=template))
    with pytest.raises(UserError, match="never stop"):
        stop_token_ids(tokenizer, "d.yaml")


def test_a_base_without_template_is_an_error(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_base(tmp_path / "b", template=None))
    with pytest.raises(UserError, match=r"no chat template(.|\n)*chat_template: FILE.jinja"):
        require_template(tokenizer, "d.yaml")
