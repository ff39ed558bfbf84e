"""What a chat template wrote is read back unchanged; declared templates render or say why not."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetune_assets.data.conversations.templates import Turn, compile_template, recognise, undo
from finetune_assets.errors import UserError

# As the models ship them; the names of the tests' templates are those that `recognise` gives.
SHIPPED = {
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
        "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}"
        "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
        "{% for message in loop_messages %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + "
        "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
        "message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'assistant') %}"
        "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n"
        "{% endif %}\n{% endfor %}"
    ),
    "phi3": (
        "{% for message in messages %}{{'<|' + message['role'] + '|>\\n' + message['content'] + "
        "'<|end|>\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
}
BOS = {"llama3": "<|begin_of_text|>", "gemma": "<bos>"}
EOS = {"phi3": "<|endoftext|>"}
TRIMS = {"llama2", "llama3", "gemma"}
DELIMITERS = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama2": ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "</s>"],
    "llama3": ["<|start_header_id|>", "<|eot_id|>", "<|eom_id|>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "zephyr": ["<|user|>", "<|assistant|>", "<|system|>", "</s>", "<|end|>"],
    "phi3": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
}
PIECES = [
    *("<|", "|>", "im_end", "user", "end", "<", ">", "s>", "</", "[", "]", "/INST", "INST", "SYS"),
    *("\n", " ", "\r\n", "\t", "### Human:", "USER:", "word", "é", "日本", "<s>", "of_turn"),
]


def chat(*contents: str, system: str | None = None) -> list[Turn]:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def applier(name: str) -> Callable[..., str]:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(SHIPPED[name])
    tokens = {"bos_token": BOS.get(name, "<s>"), "eos_token": EOS.get(name, "</s>")}
    return lambda turns, **more: template.render(messages=turns, **tokens, **more)


def conversations(name: str) -> st.SearchStrategy[list[Turn]]:
    content = st.text() | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
    if name in TRIMS:
        content = content.map(str.strip)
    content = content.filter(lambda text: not any(d in text for d in DELIMITERS[name]))
    pairs = st.lists(st.tuples(content, content), min_size=1, max_size=3)
    system = st.none() if name == "gemma" else st.none() | content
    return st.builds(
        lambda pairs, system: chat(*(text for pair in pairs for text in pair), system=system),
        pairs,
        system,
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_what_a_template_wrote_is_read_back_unchanged(name: str) -> None:
    apply = applier(name)

    @settings(max_examples=150, deadline=None, database=None)
    @given(conversations(name))
    def check(turns: list[Turn]) -> None:
        text = apply(turns)
        assert recognise(text) == name
        assert undo(text, name) == turns

    check()


@pytest.mark.parametrize("name", [n for n in SHIPPED if n != "llama2"])
def test_a_prompt_with_an_answer_put_after_it_is_a_conversation(name: str) -> None:
    prompt = applier(name)(chat("Why?"), add_generation_prompt=True)
    assert undo(prompt, name) == chat("Why?")
    assert undo(prompt + "Because.\n", name) == chat("Why?", "Because.\n")
    assert undo(prompt + "Because.</s>", name) == chat("Why?", "Because.")


PREAMBLE = "Below is an instruction that describes a task, paired with an input. Write a response."
VICUNA = "A chat between a curious user and an AI assistant. The assistant is polite."

EXAMPLES = {
    "llama 2 without <s>": ("[INST] a [/INST] b", "llama2", chat("a", "b")),
    "llama 2 that lost its special tokens": (
        "[INST] <<SYS>>\nbe kind\n<</SYS>>\n\na [/INST] b [INST] c [/INST] d",
        "llama2",
        chat("a", "b", "c", "d", system="be kind"),
    ),
    "llama 2 prompt": ("<s>[INST] a [/INST]", "llama2", chat("a")),
    "mistral": (
        "<s>[INST] a [/INST]b</s>[INST] c[/INST] d</s>",
        "llama2",
        chat("a", "b", "c", "d"),
    ),
    "llama 3 tool": (
        "<|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eom_id|>"
        "<|start_header_id|>ipython<|end_header_id|>\n\n3<|eot_id|>",
        "llama3",
        [*chat("a", "{}"), {"role": "tool", "content": "3"}],
    ),
    "phi 4": (
        "<|im_start|>user<|im_sep|>a<|im_end|><|im_start|>assistant<|im_sep|>b<|im_end|>",
        "chatml",
        chat("a", "b"),
    ),
    "phi 4 mini": ("<|user|>a<|end|><|assistant|>b<|end|><|endoftext|>", "phi3", chat("a", "b")),
    "alpaca": (
        f"{PREAMBLE}\n\n### Instruction:\nAdd.\n\n### Response:\n3 \n\n4</s>",
        "alpaca",
        chat("Add.", "3 \n\n4", system=PREAMBLE),
    ),
    "alpaca with input": (
        f"{PREAMBLE}\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:3",
        "alpaca",
        chat("Add.\n\n1, 2", "3", system=PREAMBLE),
    ),
    "alpaca with empty input": (
        f"{PREAMBLE}\n\n### Instruction:\nAdd.\n\n### Input:\n\n\n### Response:\n",
        "alpaca",
        chat("Add.", system=PREAMBLE),
    ),
    "vicuna": (
        f"{VICUNA} USER: a: b ASSISTANT: c</s>USER: d ASSISTANT: e</s>",
        "vicuna",
        chat("a: b", "c", "d", "e", system=VICUNA),
    ),
    "vicuna by lines": (
        f"{VICUNA}\n\nUSER: a\nASSISTANT: SUPERUSER: x",
        "vicuna",
        chat("a", "SUPERUSER: x", system=VICUNA),
    ),
    "guanaco": (
        "### Human: a### Assistant: b\n\nc### Human: d### Assistant: e</s>",
        "guanaco",
        chat("a", "b\n\nc", "d", "e"),
    ),
    "guanaco by lines": (
        "### Human: a\n### Assistant: b\n### Human: c\n### Assistant: d",
        "guanaco",
        chat("a", "b", "c", "d"),
    ),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_other_forms_are_read_back(example: str) -> None:
    text, name, turns = EXAMPLES[example]
    for before in ("", "\n ", "<s>" if not text.startswith(("<s>", "[INST]")) else ""):
        assert recognise(before + text) == name
        assert undo(before + text, name) == turns


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Llama 2 writes <s>[INST] question [/INST] answer </s>.",
        "`[INST]` opens a question and `[/INST]` closes it.",
        "[INST] opens a question.",
        "In ChatML, <|im_start|>user\nhello<|im_end|> is a turn.",
        "<|im_start|> and <|im_end|> are tokens.",
        "<|user|> is a token of Zephyr.",
        "<start_of_turn> begins a turn, <end_of_turn> ends it.",
        "<|begin_of_text|>Once upon a time <|start_header_id|>user<|end_header_id|>\n\n",
        "### Human: is a heading.",
        "A chat between two people is marked with USER: and ASSISTANT: tags.",
        "Below is an instruction that describes a task. ### Instruction: and ### Response:",
        "# How to\n\n### Instruction:\nDo.\n\n### Response:\nDone.",
    ],
)
def test_prose_that_mentions_delimiters_is_not_a_template(text: str) -> None:
    assert recognise(text) is None


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("chatml", "<|im_start|>user\na", "the user turn after 0 turns is never closed"),
        ("chatml", "<|im_start|>user\na<|im_start|>assistant\nb<|im_end|>", "never closed"),
        ("chatml", "<|im_start|>user\na<|im_end|>b<|im_start|>assistant\nc", "character 28: 'b<"),
        ("chatml", "<|im_start|>critic\na<|im_end|>", "no turn begins at character 0"),
        ("chatml", "  ", "there is no turn"),
        ("gemma", "<start_of_turn>user\na<end_of_turn>\nb", "no turn begins"),
        ("llama3", "<|start_header_id|>system<|end_header_id|>\n\na", "system turn"),
        ("zephyr", "<|user|>\na<|assistant|>\nb</s>", "the user turn"),
        ("llama2", "[INST] a", "the user turn"),
        ("llama2", "[INST] a [INST] b [/INST] c", "the user turn"),
        ("llama2", "<s>[INST] a [/INST] b [INST] c [/INST] d", "the assistant turn after 1 turns"),
        ("llama2", "<s>[INST] a [/INST] b </s> c", "no turn begins"),
        ("llama2", "[INST] <<SYS>>\na [/INST] b", "the system message is never closed"),
        ("alpaca", f"{PREAMBLE}\n\n### Instruction:\nAdd.", "not a preamble"),
        (
            "alpaca",
            f"{PREAMBLE}\n\n### Instruction:\na\n\n### Response:\nb\n\n### Instruction:\nc",
            "a second ### Instruction:",
        ),
        ("vicuna", "A chat between two.", "no USER:"),
        ("vicuna", f"{VICUNA} USER: a", "the user turn"),
        ("vicuna", f"{VICUNA} USER: a ASSISTANT: b USER: c ASSISTANT: d</s>", "the assistant turn"),
        ("guanaco", "### Human: a### Human: b### Assistant: c", "the user turn"),
        ("nonsense", "a", "no template 'nonsense'; there are chatml,"),
    ],
)
def test_broken_text_says_why(name: str, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("|", r"\|")):
        undo(text, name)


def test_a_declared_template_renders_columns() -> None:
    render = compile_template(
        "<TABLE>: {{ table | tojson }} <QUESTION>: {{ question }} <SQL>: {{ sql }}\n", "d.yaml"
    )
    row = {"table": [{"name": "é <b>"}], "question": "Who's it?", "sql": None, "other": 1}
    assert render(row) == ('<TABLE>: [{"name": "é <b>"}] <QUESTION>: Who\'s it? <SQL>: \n')
    assert compile_template("{{ sql | trim }}|{% if sql is none %}none{% endif %}", "d")(row) == (
        "|none"
    )


@pytest.mark.parametrize("text", ["{{ x }}", "{{ x | trim }}", "{{ x | tojson }}", "{{ x.y }}"])
def test_a_column_that_the_row_lacks_is_named(text: str) -> None:
    render = compile_template(text, "d.yaml")
    with pytest.raises(ValueError, match=r"^the template needs column 'x', which the row lacks$"):
        render({"y": 1})


@pytest.mark.parametrize(
    ("text", "row", "why"),
    [
        ("{{ x.y }}", {"x": {}}, "has no attribute 'y'"),
        ("{{ x + 1 }}", {"x": "a"}, "can only concatenate str"),
        ("{{ 1 / x }}", {"x": 0}, "division by zero"),
        ("{% for i in range(x) %}{% endfor %}", {"x": 10**9}, "Range too big"),
    ],
)
def test_a_value_that_does_not_fit_says_why(text: str, row: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        compile_template(text, "d.yaml")(row)


@pytest.mark.parametrize("text", ["a\n{{ x", "a\n{% if x %}", "a\n{{ x | nonsense }}"])
def test_wrong_syntax_names_the_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^d.yaml: template.text: line 2 of the template: "):
        compile_template(text, "d.yaml: template.text")


@pytest.mark.parametrize(
    "text",
    [
        "{{ x.__class__.__mro__ }}",
        "{{ x['__class__'] }}",
        "{{ x | attr('__class__') }}",
        "{{ ''.join.__self__ }}",
        "{{ '{0.__class__}'.format(x) }}",
        "{{ range.__globals__ }}",
    ],
)
def test_the_sandbox_keeps_templates_to_their_columns(text: str) -> None:
    with pytest.raises(UserError, match=r"^d.yaml: the template is not safe: "):
        compile_template(text, "d.yaml")({"x": "a"})
