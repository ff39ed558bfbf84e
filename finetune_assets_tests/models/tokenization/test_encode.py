"""Tokens are exactly those of the base's tokenizer, and places in the text are found exactly."""

import json
import pickle
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from finetune_assets.errors import UserError
from finetune_assets.models.tokenization import words
from finetune_assets.models.tokenization.encode import Encoder

SPLIT_THEN_BYTES = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": ""},
            "behavior": "Isolated",
            "invert": False,
        },
        {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
    ],
}
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def split_by(pattern: str) -> dict[str, Any]:
    made = json.loads(json.dumps(SPLIT_THEN_BYTES))
    made["pretokenizers"][0]["pattern"]["Regex"] = pattern
    return made


PRE_TOKENIZERS = {
    "gpt2": GPT2,
    "smollm": {"type": "Sequence", "pretokenizers": [DIGITS, GPT2]},
    "llama3": split_by(words._SPLITS_WORDS[0]),
    "qwen2": split_by(words._SPLITS_WORDS[1]),
    "qwen3.5": split_by(words._SPLITS_WORDS[2]),
}
PIECES = [
    *"aZ9 .,'-(\n\t_", "foo", "Bar", "can't", "it's", "12", "3456", "  ", "   ", " \n", "\r\n",
    "\x1c", "\x85", "\u00a0", "\u2028", "é", "e\u0301", "ǆ", "中文", "🙂", "<|im_start|>",
    "<|im_end|>", "<|im_start|>user\n", "'S", "\u0301", "٣", "\x00",
]  # fmt: skip


def texts(count: int) -> list[str]:
    chosen = random.Random(0)
    return [
        "".join(chosen.choice(PIECES) for _ in range(chosen.randrange(1, 40))) for _ in range(count)
    ]


def made(
    pre_tokenizer: dict[str, Any],
    *,
    normalizer: dict[str, Any] | None = None,
    added: tuple[AddedToken, ...] = (),
) -> PreTrainedTokenizerFast:
    """A tokenizer whose merges know no word: any two neighbours may be one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts(400), trainer)
    tokenizer.add_tokens(list(added))
    described = json.loads(tokenizer.to_str())
    described |= {"pre_tokenizer": pre_tokenizer, "normalizer": normalizer}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)))


def expected(tokenizer: Any, some: list[str]) -> list[list[int]]:
    return tokenizer(some, add_special_tokens=False)["input_ids"]


def found(encoder: Encoder, some: list[str]) -> list[list[int]]:
    return [e.ids.tolist() for e in encoder(some, [[]] * len(some))]


class TestTokens:
    @pytest.mark.parametrize("name", PRE_TOKENIZERS)
    @pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}, {"type": "Lowercase"}])
    def test_they_are_those_of_the_tokenizer(self, name: str, normalizer: Any) -> None:
        tokenizer = made(PRE_TOKENIZERS[name], normalizer=normalizer)
        encoder = Encoder.of(tokenizer, "d")
        assert (encoder._words is not None) == (normalizer != {"type": "Lowercase"})
        some = texts(600)
        for _ in range(2):  # the second time, words are remembered
            assert found(encoder, some) == expected(tokenizer, some)

    def test_they_are_so_where_no_more_words_can_be_remembered(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(words, "MOST", 50)
        tokenizer = made(GPT2)
        encoder = Encoder.of(tokenizer, "d")
        some = texts(600)
        assert found(encoder, some) == expected(tokenizer, some)
        assert encoder._words is not None
        assert len(encoder._words._known) == 50
        assert max(map(len, encoder._words._known)) <= words.LONGEST

    @pytest.mark.parametrize(
        "token",
        [
            AddedToken("foo Bar", normalized=False),
            AddedToken("foo ", normalized=False),
            AddedToken("foo", rstrip=True),
            AddedToken("foo", lstrip=True),
            AddedToken("foo", single_word=True),
        ],
    )
    def test_added_tokens_that_look_beyond_words_are_heeded(self, token: AddedToken) -> None:
        tokenizer = made(GPT2, added=(token,))
        encoder = Encoder.of(tokenizer, "d")
        some = [*texts(300), "a foo Bar x foo x", "foo foo foo"]
        assert encoder._words is None
        assert found(encoder, some) == expected(tokenizer, some)

    @pytest.mark.parametrize(
        "pre_tokenizer",
        [
            split_by(r"\w+ \w+|.|\n"),  # a token may span two words
            {**GPT2, "add_prefix_space": True},
            {**GPT2, "use_regex": False},
        ],
    )
    def test_words_of_an_unknown_pre_tokenizer_are_not_taken_apart(
        self, pre_tokenizer: dict[str, Any]
    ) -> None:
        tokenizer = made(pre_tokenizer)
        encoder = Encoder.of(tokenizer, "d")
        assert encoder._words is None
        assert found(encoder, texts(300)) == expected(tokenizer, texts(300))

    def test_what_a_tokenizer_was_saved_with_cuts_and_pads_nothing(self) -> None:
        tokenizer = made(GPT2)
        some = ["a", "foo Bar " * 50]
        whole = expected(tokenizer, some)
        tokenizer.backend_tokenizer.enable_truncation(8)
        tokenizer.backend_tokenizer.enable_padding(length=8)
        assert found(Encoder.of(tokenizer, "d"), some) == whole

    @pytest.mark.parametrize("split", [False, True])
    def test_other_processes_tokenise_alike(self, split: bool) -> None:
        tokenizer = made(GPT2)
        tokenizer.split_special_tokens = split
        encoder = pickle.loads(pickle.dumps(Encoder.of(tokenizer, "d")))
        assert found(encoder, texts(100)) == expected(tokenizer, texts(100))

    def test_a_tokenizer_without_rust_core_is_an_error(self) -> None:
        class Slow:
            is_fast = False

        with pytest.raises(UserError, match=r"d.yaml: the tokenizer of the base is a Slow"):
            Encoder.of(Slow(), "d.yaml")  # type: ignore


class TestPlaces:
    @pytest.mark.parametrize("name", PRE_TOKENIZERS)
    @pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}])
    def test_tokens_before_a_place_are_those_of_the_text_before_it(
        self, name: str, normalizer: Any
    ) -> None:
        """Wherever a place is between two tokens."""
        tokenizer = made(PRE_TOKENIZERS[name], normalizer=normalizer)
        some = texts(60)
        places = [list(range(len(text) + 1)) for text in some]
        clean = 0
        for text, each in zip(some, Encoder.of(tokenizer, "d")(some, places), strict=True):
            assert each.places[0] == 0
            assert each.places[-1] == len(each.ids)
            assert each.between[0]
            assert each.between[-1]
            for place in range(len(text)):
                before = each.ids[: each.places[place]]
                if normalizer is None and each.between[place]:
                    assert tokenizer.decode(before) == text[:place]
                    clean += 1
        assert clean > 300 or normalizer

    @pytest.mark.parametrize("name", PRE_TOKENIZERS)
    def test_widths_and_offsets_agree(self, name: str) -> None:
        tokenizer = made(PRE_TOKENIZERS[name])
        some = texts(100)
        places = [list(range(len(text) + 1)) for text in some]
        by_widths, by_offsets = Encoder.of(tokenizer, "d"), Encoder.of(tokenizer, "d")
        by_offsets._widths = None
        for a, b in zip(by_widths(some, places), by_offsets(some, places), strict=True):
            assert a.ids.tolist() == b.ids.tolist()
            assert a.places.tolist() == b.places.tolist()
            assert a.between.tolist() == b.between.tolist()

    def test_text_that_is_normalised_is_measured_by_offsets(self) -> None:
        tokenizer = made(GPT2, normalizer={"type": "NFC"})
        text = "e\u0301e\u0301 <|im_end|>"
        [each] = Encoder.of(tokenizer, "d")([text], [[5, len(text)]])
        assert each.ids[each.places[0] :].tolist() == [2]

    def test_text_that_is_normalised_to_the_same_size_is_measured_by_offsets(self) -> None:
        """Three accents lose a byte each, and one letter gains three."""
        tokenizer = made(GPT2, normalizer={"type": "NFC"})
        accents, letter = "e\u0301" * 3, "\u0958"
        assert len(unicodedata.normalize("NFC", accents + letter).encode()) == 12
        [each] = Encoder.of(tokenizer, "d")([f"{accents}<|im_end|>{letter}"], [[len(accents)]])
        assert each.ids[each.places[0]] == 2

    def test_a_tokenizer_of_another_kind_is_measured_by_offsets(self, tmp_path: Path) -> None:
        tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "▁foo": 1, "▁Bar": 2}, "[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
        [each] = Encoder.of(AutoTokenizer.from_pretrained(tmp_path), "d")(["foo Bar"], [[3, 5]])
        assert each.ids.tolist() == [1, 2]
        assert each.places.tolist() == [1, 2]
        assert each.between.tolist() == [True, False]
