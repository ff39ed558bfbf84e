"""What carries loss: the assistant's turns through their stop token, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import models
from transformers import AutoTokenizer

from finetune_assets.errors import UserError
from finetune_assets.models.tokenization.render import (
    IGNORED,
    Template,
    Tokens,
    prompt_ids,
    require_template,
    stop_token_ids,
)
from finetune_assets.models.tokenization.rows import RowTokenizer
from finetune_assets_tests.models.tokenization.templates import FAMILIES
from finetune_assets_tests.tiny import CHATML, make_base

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "second answer"},
]
FUNCTION = {
    "type": "function",
    "function": {"name": "look", "description": "é <b>", "parameters": {"type": "object"}},
}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": 'é "it\'s" <b>'}}}
CALLS = [
    {"role": "user", "content": "where?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "seen"},
    {"role": "assistant", "content": " a\nb ", "weight": None},
]


def tokenize(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> Tokens:
    return RowTokenizer.of(tokenizer, "d.yaml", **options)([{"messages": messages}])[0]


def stored(message: dict[str, Any]) -> dict[str, Any]:
    """A turn as splits hold it."""
    calls = message.get("tool_calls")
    return {**message, "tool_calls": json.dumps(calls) if calls else None}


def learned(tokenizer: Any, tokens: Tokens) -> str:
    return tokenizer.decode(tokens.labels[tokens.labels != IGNORED])


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("family") / "b"
    return AutoTokenizer.from_pretrained(make_base(folder, template=FAMILIES[request.param]))


class TestTemplate:
    @pytest.mark.parametrize("open_turn", [False, True])
    @pytest.mark.parametrize("functions", [None, [], [FUNCTION]])
    @pytest.mark.parametrize("messages", [CHAT, CALLS, CHAT[:2]])
    def test_it_prints_what_apply_chat_template_prints(
        self, family: Any, messages: list[Any], functions: Any, open_turn: bool
    ) -> None:
        expected = family.apply_chat_template(
            messages, tools=functions, tokenize=False, add_generation_prompt=open_turn
        )
        found = Template.of(family).render(messages, functions=functions, open_turn=open_turn)
        assert found == expected

    @pytest.mark.parametrize("messages", [CHAT, CALLS])
    def test_tokens_are_those_of_apply_chat_template(
        self, family: Any, messages: list[dict[str, Any]]
    ) -> None:
        if messages is CALLS and "tool_calls" not in family.chat_template:
            with pytest.raises(UserError, match="'look', which the base's chat template leaves"):
                tokenize(family, [stored(m) for m in CALLS])
            return
        expected = family.apply_chat_template(messages)["input_ids"]
        assert tokenize(family, [stored(m) for m in messages]).input_ids.tolist() == expected

    def test_what_it_refuses_is_an_error_that_names_the_row(self, tmp_path: Path) -> None:
        template = "{{ raise_exception('roles must alternate') }}"
        tokenizer = AutoTokenizer.from_pretrained(make_base(tmp_path / "b", template=template))
        with pytest.raises(UserError, match=r"^a.jsonl:3: (.|\n)*roles must alternate"):
            Template.of(tokenizer).render(CHAT, where="a.jsonl:3")

    def test_one_that_is_no_jinja_is_an_error(self, tmp_path: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(make_base(tmp_path / "b", template="{% if %}"))
        with pytest.raises(UserError, match=r"d.yaml: the chat template is no valid Jinja"):
            Template.of(tokenizer, "d.yaml")

    def test_a_base_without_one_is_an_error(self, tmp_path: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(make_base(tmp_path / "b", template=None))
        with pytest.raises(UserError, match=r"no chat template(.|\n)*chat_template: FILE.jinja"):
            require_template(tokenizer, "d.yaml")


class TestLoss:
    def test_it_is_on_the_answers_and_their_stop_tokens(self, tiny_base: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        tokens = tokenize(tokenizer, CHAT)
        assert learned(tokenizer, tokens) == "first answer<|im_end|>second answer<|im_end|>"

    def test_it_is_on_answers_of_every_family(self, family: Any) -> None:
        # The space before an answer is the answer's where the header ends without one.
        said = learned(family, tokenize(family, CHAT)).replace("> ", ">").lstrip()
        assert said == "first answer<|im_end|>second answer<|im_end|>"

    def test_the_prompt_is_what_precedes_the_answer(self, family: Any) -> None:
        ids = prompt_ids(family, CHAT[:4])
        tokens = tokenize(family, CHAT, loss_mask="completion")
        assert tokens.input_ids[: len(ids)].tolist() == ids
        assert (tokens.labels[: len(ids)] == IGNORED).all()
        assert (tokens.labels != IGNORED)[len(ids)]

    def test_the_stop_token_is_learned_although_it_is_also_the_padding(
        self, tiny_base: Path
    ) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        assert tokenizer.pad_token_id == tokenizer.eos_token_id
        assert tokenizer.eos_token_id in tokenize(tokenizer, CHAT).labels
        assert stop_token_ids(tokenizer, "x") == [tokenizer.eos_token_id]


class TestGuards:
    """Each of these would make a model that is silently worse."""

    def of(self, folder: Path, template: str, **options: Any) -> Any:
        return AutoTokenizer.from_pretrained(make_base(folder / "b", template=template, **options))

    @pytest.mark.parametrize("adds_bos", [False, True])
    def test_a_template_that_prints_bos_gives_one_bos(self, tmp_path: Path, adds_bos: bool) -> None:
        """Also where the tokenizer would add its own."""
        template = "{{ bos_token }}" + CHATML.replace("<|im_start|>", "")
        tokenizer = self.of(tmp_path, template, adds_bos=adds_bos)
        assert (tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id) == adds_bos
        ids = tokenize(tokenizer, CHAT).input_ids.tolist()
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
        assert prompt_ids(tokenizer, CHAT[:2]).count(tokenizer.bos_token_id) == 1

    def test_a_template_that_prints_bos_twice_is_an_error(self, tmp_path: Path) -> None:
        template = "{{ bos_token + bos_token }}" + CHATML.replace("<|im_start|>", "")
        with pytest.raises(UserError, match="begins with BOS twice"):
            tokenize(self.of(tmp_path, template), CHAT)

    def test_a_template_that_closes_no_turn_is_an_error(self, tmp_path: Path) -> None:
        template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
        with pytest.raises(UserError, match="never stop"):
            stop_token_ids(self.of(tmp_path, template), "d.yaml")

    @pytest.mark.parametrize("mask", ["assistant", "completion", "all"])
    def test_an_answer_that_is_not_closed_is_an_error(self, tmp_path: Path, mask: str) -> None:
        """Here the template closes answers, but not calls to tools."""
        template = (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
            "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}"
            "{% if not m.tool_calls %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
        )
        calls = '[{"function": {"name": "look", "arguments": {}}}]'
        row = {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "", "tool_calls": calls},
            ],
            "source": "a.jsonl",
            "line": 7,
        }
        tokenizer = self.of(tmp_path, template)
        with pytest.raises(UserError, match=r"a.jsonl:7: (.|\n)*does not close every answer"):
            RowTokenizer.of(tokenizer, "d.yaml", loss_mask=mask)([row])

    def test_generation_may_stop_at_more_than_the_template_prints_in_the_end(
        self, tmp_path: Path
    ) -> None:
        """Some close calls to tools with a token of their own."""
        template = CHATML.replace(
            "'<|im_end|>'", "('<|endoftext|>' if message.tool_calls else '<|im_end|>')"
        )
        calls = '[{"function": {"name": "look", "arguments": {}}}]'
        turns = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "look", "tool_calls": calls},
        ]
        tokenizer = self.of(tmp_path, template)
        assert RowTokenizer.of(tokenizer, "d", also_stop=[0])([{"messages": turns}])[0].labels[-1]
        with pytest.raises(UserError, match="does not close every answer"):
            RowTokenizer.of(tokenizer, "d")([{"messages": turns}])

    def test_an_answer_that_merges_with_its_header_is_an_error(self, tiny_base: Path) -> None:
        """The model would learn to answer prompts with a last token that it never gets."""
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        core = tokenizer.backend_tokenizer
        described = json.loads(core.to_str())
        vocabulary = {**described["model"]["vocab"], "ĊĊ": len(tokenizer)}
        merges = [*map(tuple, described["model"]["merges"]), ("Ċ", "Ċ")]
        core.model = models.BPE(vocabulary, merges)
        row = {
            "messages": [CHAT[1], {"role": "assistant", "content": "\n\nx"}],
            "source": "a.jsonl",
        }
        row["line"] = 5
        asked = prompt_ids(tokenizer, row["messages"][:1])
        ids = tokenizer.apply_chat_template(row["messages"])["input_ids"]
        assert ids[: len(asked)] != asked
        with pytest.raises(UserError, match=r"a.jsonl:5: the beginning of an answer is one token"):
            RowTokenizer.of(tokenizer, "d.yaml")([row])
        lenient = RowTokenizer.of(tokenizer, "d.yaml", strict=False)([row])[0]
        assert learned(tokenizer, lenient) == "\n\n\nx<|im_end|>"

    def test_a_template_that_renders_turns_differently_later_is_an_error(
        self, tmp_path: Path
    ) -> None:
        template = CHATML.replace(
            "message['content']",
            "(message['content'] if loop.last or message.role != 'assistant' else '')",
        )
        tokenizer = self.of(tmp_path, template)
        with pytest.raises(UserError, match=r"renders message 2 differently"):
            tokenize(tokenizer, CHAT)
        last = tokenize(tokenizer, CHAT, loss_mask="completion")
        assert learned(tokenizer, last) == "second answer<|im_end|>", "the last is as it is asked"

    def test_a_token_that_the_model_does_not_know_is_an_error(self, tiny_base: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        vocabulary = len(tokenizer)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
        rows = [
            {"messages": [CHAT[1], {"role": "assistant", "content": c}]} for c in ("a", "<|new|>")
        ]
        tokenize_rows = RowTokenizer.of(tokenizer, "d.yaml", vocabulary=vocabulary)
        assert len(tokenize_rows(rows[:1])) == 1
        with pytest.raises(UserError, match=rf"the token {vocabulary}, but(.|\n)*resize"):
            tokenize_rows(rows)

    def test_functions_that_the_template_leaves_out_are_an_error(self, tiny_base: Path) -> None:
        row = {"messages": CHAT, "tools": '[{"type": "function", "function": {"name": "look"}}]'}
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        with pytest.raises(UserError, match=r"'look', which the base's chat template leaves out"):
            RowTokenizer.of(tokenizer, "d.yaml")([row])
