"""How long the things take that must be quick: loading the definitions, opening a training set.

    python benchmarks/opening.py [--rows 1000000]

`definitions` is what Dagster and the command line wait for, in a process of its own, without the
start of Python; `contexts` opens a training set of that many rows and reads one context. Both are
the best of five; the alternative of the second is reading all tokens.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
REPEATS = 5
TOKENS = 20
"""Of each row."""
LOADING = """
import time
began = time.perf_counter()
import finetune_assets.definitions
print(time.perf_counter() - began)
"""


def best(measure: Callable[[], float]) -> float:
    """Return the shortest of several measurements, in seconds."""
    return min(measure() for _ in range(REPEATS))


def load_definitions() -> float:
    """Load the definitions in a new process; return the seconds."""
    command = [sys.executable, "-c", LOADING]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return float(done.stdout)


def write_rows(folder: Path, rows: int) -> None:
    """Write a training set of which ten rows share a context."""
    from finetune_assets.models.tokenization.contexts import write_contexts

    with write_contexts(folder, "train") as writer:
        tokens = np.ones(TOKENS * rows, np.int32)
        writer.append(tokens, tokens > 0, np.full(rows, TOKENS))
        writer.finish(np.arange(rows), np.arange(0, rows + 1, 10))


def open_contexts(folder: Path) -> float:
    """Open a training set and read its last context; return the seconds."""
    from finetune_assets.models.tokenization.contexts import Contexts

    began = time.perf_counter()
    assert len(Contexts.open(folder, "train")[-1].input_ids) == 10 * TOKENS
    return time.perf_counter() - began


def read_tokens(folder: Path) -> float:
    """Read every token of a training set; return the seconds."""
    began = time.perf_counter()
    np.load(folder / "train" / "tokens.npy")
    return time.perf_counter() - began


def main() -> None:
    """Measure both, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows // 10 * 10
    print(f"definitions: {best(load_definitions):.2f} s")
    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name), rows)
        opened = best(lambda: open_contexts(Path(name)))
        whole = best(lambda: read_tokens(Path(name)))
    print(f"contexts: {1000 * opened:.1f} ms for {rows} rows; all tokens: {1000 * whole:.1f} ms")


if __name__ == "__main__":
    main()
