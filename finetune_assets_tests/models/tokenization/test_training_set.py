"""Counts of what carries loss; rows that do not fit are cut, dropped or an error, never silent."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.tokenization import training_set
from finetune_assets.models.tokenization.contexts import Context, Contexts
from finetune_assets.models.tokenization.render import IGNORED
from finetune_assets.models.tokenization.training_set import build
from finetune_assets.processes.pool import map_in_processes
from finetune_assets_tests.models.tokenization.splits import chat, write, write_rows
from finetune_assets_tests.tiny import make_base

STOP = 2


def run(
    base: Path, path: Path, out: Path, processes: int = 0, say: Any = None, **changes: Any
) -> dict[str, Any]:
    """Statistics of the training split; its contexts are in `out`."""
    statistics = build(
        base,
        {"train": path},
        out,
        where="d.yaml",
        training=Training.model_validate({"max_length": 64, **changes}),
        progress=say or (lambda _: None),
        processes=processes,
    )
    return statistics["train"] | {"shuffle": statistics["shuffle"]}


def learned(base: Path, context: Context) -> str:
    """The text that carries loss."""
    labels = context.labels[context.labels != IGNORED]
    return AutoTokenizer.from_pretrained(base).decode(labels)


def test_counts_add_up(tiny_base: Path, tmp_path: Path) -> None:
    counts = run(tiny_base, write(tmp_path / "r.parquet", ["abc", "defgh"]), tmp_path / "o")
    assert counts["rows"] == 2
    assert counts["tokens"] == counts["tokens_with_loss"] + counts["tokens_without_loss"]
    assert counts["tokens_with_loss"] == len("abc") + len("defgh") + 2
    assert counts["truncated_rows"] == counts["dropped_rows"] == 0
    contexts = Contexts.open(tmp_path / "o", "train")
    assert contexts.lengths.sum() == counts["tokens"]
    assert contexts.supervised.sum() == counts["tokens_with_loss"]
    assert len(contexts) == counts["contexts"]
    shown = "".join(text for text, loss in counts["preview"][1] if loss)
    assert shown == "defgh<|im_end|>"


def test_the_manifest_holds_a_histogram_and_no_list_of_rows(
    tiny_base: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "r.parquet", ["x" * (i % 200) for i in range(1, 2000)])
    counts = run(tiny_base, path, tmp_path / "o", max_length=256)
    lengths = counts["lengths"]
    assert sum(lengths["counts"]) == counts["rows"] == 1999
    assert len(lengths["edges"]) == len(lengths["counts"]) + 1 <= 41
    assert lengths["edges"][-1] > counts["longest"]
    assert len(json.dumps(counts)) < 3000


class TestLongRows:
    def test_a_cut_answer_keeps_no_stop_token(self, tiny_base: Path, tmp_path: Path) -> None:
        """Wherever it is cut, also in a later turn."""
        path = write_rows(
            tmp_path / "r.parquet", [chat("hi", "first", "and", "x" * 30), chat("a", "b")]
        )
        whole = run(tiny_base, path, tmp_path / "whole", packing=False, max_length=256)["longest"]
        stops = np.flatnonzero(Contexts.open(tmp_path / "whole", "train")[0].labels == STOP)
        assert len(stops) == 2
        for length in range(20, whole + 1):
            out = tmp_path / str(length)
            counts = run(tiny_base, path, out, packing=False, max_length=length)
            context = Contexts.open(out, "train")[0]
            assert len(context.labels) <= length
            if counts["rows"] == 2:
                kept = np.flatnonzero(context.labels == STOP).tolist()
                assert kept == [s for s in stops if s < length]
                assert counts["truncated_rows"] == (length < whole)

    def test_they_can_be_dropped(self, tiny_base: Path, tmp_path: Path) -> None:
        path = write(tmp_path / "r.parquet", ["x" * 200, "y"])
        counts = run(tiny_base, path, tmp_path / "o", long_rows="drop")
        assert (counts["rows"], counts["dropped_rows"]) == (1, 1)
        assert counts["dropped_at"] == ["rows.jsonl:1"]

    def test_they_can_be_an_error_with_file_and_line(self, tiny_base: Path, tmp_path: Path) -> None:
        path = write(tmp_path / "r.parquet", ["y", "x" * 200])
        with pytest.raises(UserError, match=r"rows.jsonl:2: the row has \d+ tokens, more than"):
            run(tiny_base, path, tmp_path / "o", long_rows="error")

    def test_rows_that_teach_nothing_are_left_out_and_counted(
        self, tiny_base: Path, tmp_path: Path
    ) -> None:
        silent = chat("hi", "no")
        silent["messages"][1]["weight"] = 0.0
        rows = [
            chat("p" * 200, "answer"),
            silent,
            chat("hi", "yes"),
            chat("hi", "bad", label=False),
        ]
        path = write_rows(tmp_path / "r.parquet", rows)
        counts = run(tiny_base, path, tmp_path / "o", packing=False)
        assert (counts["rows"], counts["dropped_rows"], counts["unwanted_rows"]) == (1, 2, 1)
        assert counts["dropped_at"] == ["rows.jsonl:1", "rows.jsonl:2"]
        assert Contexts.open(tmp_path / "o", "train").supervised.min() > 0

    def test_no_token_with_loss_is_an_error(self, tiny_base: Path, tmp_path: Path) -> None:
        path = write(tmp_path / "r.parquet", ["a", "b"], prompt="p" * 200)
        with pytest.raises(UserError, match=r"no token carries loss(.|\n)*raise `training.max_len"):
            run(tiny_base, path, tmp_path / "o")


class TestLossMask:
    ROW = chat("one", "first", "two", "second")

    def text(self, base: Path, folder: Path, row: dict[str, Any], mask: str) -> str:
        path = write_rows(folder / "r.parquet", [row])
        run(base, path, folder / mask, max_length=128, loss_mask=mask)
        return learned(base, Contexts.open(folder / mask, "train")[0])

    @pytest.mark.parametrize(
        ("mask", "expected"),
        [
            ("assistant", "first<|im_end|>second<|im_end|>"),
            ("completion", "second<|im_end|>"),
            (
                "all",
                "user\none<|im_end|>\n<|im_start|>assistant\nfirst<|im_end|>\n"
                "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\nsecond<|im_end|>\n",
            ),
        ],
    )
    def test_it_says_which_tokens_carry_loss(
        self, tiny_base: Path, tmp_path: Path, mask: str, expected: str
    ) -> None:
        assert self.text(tiny_base, tmp_path, self.ROW, mask) == expected

    def test_a_turn_of_weight_0_carries_none(self, tiny_base: Path, tmp_path: Path) -> None:
        row = chat("one", "first", "two", "second")
        row["messages"][1]["weight"] = 0.0
        assert self.text(tiny_base, tmp_path, row, "assistant") == "second<|im_end|>"
        everything = self.text(tiny_base, tmp_path, row, "all")
        assert everything == (
            "user\none<|im_end|>\n<|im_start|>assistant\n\n"
            "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\nsecond<|im_end|>\n"
        )


class TestDocuments:
    def contexts(
        self, base: Path, folder: Path, texts: list[str], **changes: Any
    ) -> tuple[list[Context], dict[str, Any]]:
        path = write_rows(folder / "r.parquet", [{"text": text} for text in texts])
        counts = run(base, path, folder / "o", **changes)
        return list(Contexts.open(folder / "o", "train")), counts

    def texts(self, base: Path, contexts: list[Context]) -> list[str]:
        tokenizer = AutoTokenizer.from_pretrained(base)
        return [tokenizer.decode(c.input_ids) for c in contexts]

    def test_nothing_of_a_long_one_is_lost(self, tiny_base: Path, tmp_path: Path) -> None:
        text = "".join(chr(97 + i % 26) for i in range(200))
        contexts, counts = self.contexts(tiny_base, tmp_path, [text], packing=False)
        assert "".join(self.texts(tiny_base, contexts)) == text + "<|im_end|>"
        assert counts["dropped_rows"] == counts["truncated_rows"] == 0
        assert all(c.position_ids[0] == 0 for c in contexts)
        assert max(len(c.input_ids) for c in contexts) <= 64

    def test_with_an_overlap_every_token_is_learned_once(
        self, tiny_base: Path, tmp_path: Path
    ) -> None:
        text = "".join(chr(97 + i % 26) for i in range(200))
        contexts, _ = self.contexts(
            tiny_base, tmp_path, [text], packing=False, documents={"overlap": 8}
        )
        seen = "".join(learned(tiny_base, c) for c in contexts)
        assert seen == text[1:] + "<|im_end|>", "nothing comes before the first letter"
        for before, after in itertools.pairwise(contexts):
            assert after.input_ids[:8].tolist() == before.input_ids[-8:].tolist()
            assert (after.labels[:8] == IGNORED).all()

    def test_it_is_cut_after_the_last_boundary_of_the_second_half(
        self, tiny_base: Path, tmp_path: Path
    ) -> None:
        text = "a" * 20 + "\n" + "b" * 20 + "\n" + "c" * 19 + "\n" + "é" * 60 + "\n" + "d" * 5
        contexts, _ = self.contexts(
            tiny_base, tmp_path, [text], packing=False, documents={"boundary": "\n"}
        )
        first, second, *others = self.texts(tiny_base, contexts)
        assert first == "a" * 20 + "\n" + "b" * 20 + "\n" + "c" * 19 + "\n"
        assert second == "é" * 32, "there is no boundary in it"
        assert others == ["é" * 28 + "\n" + "ddddd<|im_end|>"]

    def test_without_shuffling_contexts_keep_their_order(
        self, tiny_base: Path, tmp_path: Path
    ) -> None:
        texts = [chr(97 + i) * (5 + 7 * i % 40) for i in range(26)]
        contexts, counts = self.contexts(tiny_base, tmp_path, texts, documents={"shuffle": False})
        assert "".join(self.texts(tiny_base, contexts)) == "".join(t + "<|im_end|>" for t in texts)
        assert counts["shuffle"] is False
        assert len(contexts) < 20, "they are packed nevertheless"

    def test_conversations_are_shuffled_whatever_is_said_of_documents(
        self, tiny_base: Path, tmp_path: Path
    ) -> None:
        path = write(tmp_path / "r.parquet", ["a", "b"])
        assert run(tiny_base, path, tmp_path / "o", documents={"shuffle": False})["shuffle"] is True

    def test_a_sample_is_chosen_by_hash_of_the_piece(self, tiny_base: Path, tmp_path: Path) -> None:
        texts = [f"document {i}" for i in range(300)]
        kept: list[set[str]] = []
        for name, some in (("all", texts), ("fewer", texts[150:])):
            (tmp_path / name).mkdir()
            contexts, counts = self.contexts(
                tiny_base, tmp_path / name, some, packing=False, documents={"sample": 0.3}
            )
            kept.append(set(self.texts(tiny_base, contexts)))
            assert counts["rows"] == len(contexts)
        assert 60 < len(kept[0]) < 120
        assert kept[1] == kept[0] & {f"{t}<|im_end|>" for t in texts[150:]}

    def test_bos_begins_one_where_the_tokenizer_says_so_and_never_twice(
        self, tmp_path: Path
    ) -> None:
        base = make_base(tmp_path / "b", adds_bos=True)
        contexts, _ = self.contexts(base, tmp_path, ["abc", "<|im_start|>def"], packing=False)
        assert self.texts(base, contexts) == [
            "<|im_start|>abc<|im_end|>",
            "<|im_start|>def<|im_end|>",
        ]

    def test_bos_is_left_out_where_the_tokenizer_adds_none(
        self, tiny_base: Path, tmp_path: Path
    ) -> None:
        contexts, _ = self.contexts(tiny_base, tmp_path, ["abc"])
        assert self.texts(tiny_base, contexts) == ["abc<|im_end|>"]


class TestProcesses:
    def files(self, folder: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted((folder / "train").iterdir())}

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        rows = [chat(f"question {i}", "é" * (i % 50) + str(i)) for i in range(3000)]
        rows[::7] = [{"text": f"some text {i} " * (i % 9)} for i in range(len(rows[::7]))]
        return write_rows(tmp_path / "r.parquet", rows)

    def test_files_are_the_same_with_any_number_of_them(
        self, tiny_base: Path, tmp_path: Path, path: Path
    ) -> None:
        here = run(tiny_base, path, tmp_path / "0", max_length=40, processes=0)
        there = run(tiny_base, path, tmp_path / "3", max_length=40, processes=3)
        assert here == there
        assert self.files(tmp_path / "0") == self.files(tmp_path / "3")

    def test_an_error_there_is_the_first_of_the_file(self, tiny_base: Path, tmp_path: Path) -> None:
        rows = [chat("hi", "ok")] * 5000
        rows[1200] = rows[4999] = chat("hi", "x" * 100)
        path = write_rows(tmp_path / "r.parquet", rows)
        with pytest.raises(UserError, match=r"rows.jsonl:1201: the row has \d+ tokens"):
            run(tiny_base, path, tmp_path / "o", processes=2, long_rows="error")

    def test_one_that_is_killed_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="ended abruptly"):
            list(map_in_processes(_die, range(5), 2, where="d.yaml", task="died"))

    def test_what_is_forked_has_one_thread(self) -> None:
        """Others would be gone in the fork, with whatever locks they held."""
        script = f"import os\nfor name in {training_set.PRELOADED}: __import__(name)\n"
        script += "import sys; print('torch' in sys.modules, len(os.listdir('/proc/self/task')))"
        single = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=single)
        assert done.stdout.decode().split() == ["False", "1"]

    def test_progress_tells_speed_and_time_left(
        self, tiny_base: Path, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training_set, "PROGRESS_SECONDS", 0.0)
        said: list[str] = []
        run(tiny_base, path, tmp_path / "o", max_length=40, say=said.append)
        assert said[0].startswith("train: 512 of 3000 rows, ")
        assert said[0].endswith(" s left")
        assert "rows/s" in said[0]


WORKER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from finetune_assets.launch.worker import training_sets
base, rows, out = map(Path, sys.argv[1:])
folders = {"base_models": base, "train_splits": rows, "validation_splits": rows}
job = SimpleNamespace(folder=folders.get, where="d.yaml", config={"max_length": 40})
training_sets(job, out, SimpleNamespace(log=print))
assert sys.modules["torch"] is None
"""


def test_the_worker_imports_no_torch_and_writes_the_same(tiny_base: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", ["a", "bc"])
    run(tiny_base, path, tmp_path / "here", max_length=40)
    command = [sys.executable, "-c", WORKER, str(tiny_base), str(tmp_path), str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("tokens", "learned", "members"):
        file = Path("train") / f"{name}.npy"
        assert (tmp_path / "o" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
