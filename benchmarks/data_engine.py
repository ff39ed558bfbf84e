"""Our data path against `datasets` + `datasketch`, and against what reading and writing cost.

    python benchmarks/data_engine.py --rows 1000000 [--engines ours,baseline,floor] [--work FOLDER]

From JSON lines of conversations, about 1 KB each, to three splits without leaks. `floor` is polars
reading the same file and writing it as Parquet, with nothing between. Every engine runs in a
process of its own; time is from its start to its end, memory is what it and its children hold.
Ours does more than the baseline: it keeps every row that was removed, with the reason, describes
the corpus, and looks for n-grams of evaluation rows in training rows.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ENGINES = ("ours", "baseline", "floor")
SPLITS = ("train", "validation", "test")
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Measured:
    """What one run took, and what it found."""

    rows: int
    seconds: float
    peak: int
    """Bytes in memory (PSS), with the pages of files that are mapped."""
    held: int
    """Bytes in memory without those, which the system can drop."""
    found: dict[str, Any]

    @property
    def rate(self) -> float:
        return self.rows / self.seconds


def ours(source: Path, out: Path) -> dict[str, Any]:
    """The functions that the assets call, with the default configuration."""
    from finetune_assets.catalog.config import Dataset
    from finetune_assets.catalog.load import Entry
    from finetune_assets.data.corpora.corpus import write_corpus
    from finetune_assets.data.sources.raw import write_raw
    from finetune_assets.data.sources.sources import pin
    from finetune_assets.data.splits.division import Division

    config = Dataset.model_validate({"sources": [{"path": str(source)}], "base": {"model": "none"}})
    entry = Entry("data_engine", str(out / "data_engine.yaml"), config)
    seconds: dict[str, float] = {}

    def stage(name: str, work: Callable[[Path], Any]) -> Any:
        folder = out / name
        folder.mkdir()
        started = time.monotonic()
        result = work(folder)
        seconds[name] = time.monotonic() - started
        return result

    pinned = stage("pin", lambda folder: pin(entry, folder))
    stage("raw", lambda folder: write_raw(pinned, config.sources, folder))
    raw = out / "raw" / "rows.parquet"
    corpus, _ = stage("corpus", lambda folder: write_corpus(raw, config, folder, entry.uri))
    division = Division(out / "corpus", config, entry.uri, entry.locate)
    for name in SPLITS:
        stage(name, lambda folder, name=name: division.write(name, folder))
    return {
        "accepted": corpus.rows,
        "unusable": corpus.rejected,
        "exact_duplicates": corpus.exact_duplicates,
        "near_duplicates": corpus.near_duplicates,
        "personal_data": corpus.personal_data.rows,
        "stages": seconds,
        "splits": {name: str(out / name / "rows.parquet") for name in SPLITS},
    }


def baseline(source: Path, out: Path, bands: str | None) -> dict[str, Any]:
    from benchmarks import data_engine_baseline
    from finetune_assets.data.corpora.near_duplicates import BAND_ROWS, BANDS

    number, rows = map(int, bands.split("x")) if bands else (BANDS, BAND_ROWS)
    return data_engine_baseline.run(source, out, number, rows)


def floor(source: Path, out: Path) -> dict[str, Any]:
    """The same bytes from JSON lines to Parquet."""
    import polars as pl

    pl.scan_ndjson(source).sink_parquet(out / "rows.parquet")
    return {}


class Failed(Exception):
    """An engine came to no result."""


def measure(engine: str, rows: int, work: Path, limit: int, bands: str | None = None) -> Measured:
    """Run an engine on the first `rows` rows, in a process of its own.

    Raises Failed if it fails, or holds more than `limit` bytes.
    """
    import psutil

    source, _ = data_of(rows, work)
    out = work / engine
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    known = {
        "FINETUNE_STORAGE": str(out / "storage"),
        "HF_HOME": str(out / "huggingface"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "benchmarks.data_engine"]
    command += ["--baseline-bands", bands] if bands else []
    started = time.monotonic()
    process = psutil.Popen(
        [*command, "--run", engine, str(source), str(out)], cwd=ROOT, env={**os.environ, **known}
    )
    peak = held = 0
    while process.poll() is None:
        before = time.monotonic()
        now, without_files = memory(process)
        peak, held = max(peak, now), max(held, without_files)
        if without_files > limit:
            for each in [*process.children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait()
            spent = time.monotonic() - started
            raise Failed(
                f"{engine}: stopped at {spent:.0f} s, as it held {without_files / 1e9:.1f} GB"
            )
        # Counting pages takes time from who uses them.
        time.sleep(max(SAMPLE_SECONDS, 9 * (time.monotonic() - before)))
    seconds = time.monotonic() - started
    if process.returncode:
        raise Failed(f"{engine}: ended with {process.returncode}")
    return Measured(rows, seconds, peak, held, json.loads((out / "found.json").read_text()))


def memory(process: Any) -> tuple[int, int]:
    """Bytes that a process and its children hold, with and without mapped files.

    Pages that several share are counted once (PSS) on Linux; elsewhere every time (RSS).
    """
    import psutil

    total = without_files = 0
    # A child may end while it is looked at.
    with suppress(psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
        for each in [process, *process.children(recursive=True)]:
            if sys.platform != "linux":
                total += each.memory_info().rss
                without_files = total
                continue
            text = Path(f"/proc/{each.pid}/smaps_rollup").read_text()
            lines = (line.split() for line in text.splitlines() if line.startswith("Pss"))
            size = {name: 1024 * int(kilobytes) for name, kilobytes, _ in lines}
            total += size.get("Pss:", 0)
            without_files += size.get("Pss_Anon:", 0) + size.get("Pss_Shmem:", 0)
    return total, without_files


def data_of(rows: int, work: Path) -> tuple[Path, Path]:
    """Files of the first `rows` conversations, and of what they are."""
    from benchmarks.data_engine_rows import generate

    source, truth = work / f"rows-{rows}.jsonl", work / f"truth-{rows}.parquet"
    generate(source, truth, rows)
    return source, truth


def families(measured: Measured, truth: Path) -> dict[str, int]:
    """Planted copies that are left, and families of them that stand in several splits."""
    import polars as pl

    parts = [
        pl.scan_parquet(path).select("line", pl.lit(name).alias("split"))
        for name, path in measured.found["splits"].items()
    ]
    placed = pl.concat(parts).collect().join(pl.read_parquet(truth), on="line")
    apart = placed.group_by("family").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    left = dict(placed["kind"].value_counts().iter_rows())
    return {
        **{name: int((placed["split"] == name).sum()) for name in SPLITS},
        "planted exact duplicates left": left.get("exact", 0),
        "planted near duplicates left": left.get("near", 0),
        "their families in several splits": apart.height,
    }


def table(rows: list[list[str]]) -> str:
    """Rows of cells, the first as a heading; all columns but the first to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def print_speeds(runs: dict[str, Measured]) -> None:
    heading = ["", "rows", "seconds", "rows/s", "us/row", "peak MB", "without mapped files"]
    cells = [
        [
            name,
            f"{run.rows:,}",
            f"{run.seconds:.1f}",
            f"{run.rate:,.0f}",
            f"{1e6 / run.rate:.0f}",
            f"{run.peak / 1e6:,.0f}",
            f"{run.held / 1e6:,.0f}",
        ]
        for name, run in runs.items()
    ]
    print(table([heading, *cells]))
    for a, b in (("ours", "baseline"), ("floor", "ours")):
        if a in runs and b in runs:
            times = runs[a].rate / runs[b].rate
            memories = runs[b].held / runs[a].held
            print(f"{a} : {b}  {times:.2f} times the rows/s, memory 1 : {memories:.2f}", end="")
            same = runs[a].rows == runs[b].rows
            print("" if same else f" ({runs[a].rows:,} and {runs[b].rows:,} rows)")


def print_stages(run: Measured) -> None:
    stages = run.found["stages"]
    stages = stages | {"start and end": run.seconds - sum(stages.values())}
    cells = [
        [name, f"{seconds:.1f}", f"{seconds / run.rows * 1e6:.0f}"]
        for name, seconds in stages.items()
    ]
    print("\n" + table([["stage of ours", "seconds", "us/row"], *cells]))


def print_findings(runs: dict[str, Measured], work: Path) -> None:
    found = {}
    for name, run in runs.items():
        counts = {k: v for k, v in run.found.items() if isinstance(v, int)}
        if counts:
            found[name] = counts | families(run, data_of(run.rows, work)[1])
    if found:
        labels = list(next(iter(found.values())))
        cells = [
            [label.replace("_", " "), *(f"{f[label]:,}" for f in found.values())]
            for label in labels
        ]
        print("\n" + table([["rows found", *found], *cells]))


def print_scaling(options: argparse.Namespace, work: Path, limit: int) -> None:
    sizes = (options.rows // 10, options.rows)
    less, more = (measure("ours", n, work, limit) for n in sizes)
    print_speeds({f"ours, {run.rows:,}": run for run in (less, more)})
    print_stages(more)
    times, memories = more.seconds / less.seconds, more.held / less.held
    print(f"\n10 times the rows take {times:.1f} times the time, {memories:.1f} times the memory")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument(
        "--work", type=Path, default=Path("storage/benchmarks/data_engine"), help="kept folder"
    )
    parser.add_argument("--baseline-rows", type=int, help="the baseline's rows, if fewer")
    parser.add_argument("--baseline-bands", metavar="BANDSxROWS", help="of its LSH; default: ours")
    parser.add_argument("--scaling", action="store_true", help="ours alone, at rows / 10 and rows")
    parser.add_argument("--run", nargs=3, metavar=("ENGINE", "SOURCE", "OUT"), help="for itself")
    options = parser.parse_args()
    options.engines = options.engines.split(",")
    if unknown := set(options.engines) - set(ENGINES):
        parser.error(f"no engine {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    return options


def main() -> None:
    options = parse()
    if options.run:
        engine, source, out = options.run[0], Path(options.run[1]), Path(options.run[2])
        if engine == "baseline":
            found = baseline(source, out, options.baseline_bands)
        else:
            found = {"ours": ours, "floor": floor}[engine](source, out)
        (out / "found.json").write_text(json.dumps(found))
        return
    import psutil

    sys.path.insert(0, str(ROOT))
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    limit = int(0.75 * psutil.virtual_memory().available)
    if options.scaling:
        print_scaling(options, work, limit)
        return
    runs = {}
    for engine in options.engines:
        fewer = options.baseline_rows if engine == "baseline" else None
        rows = min(options.rows, fewer or options.rows)
        try:
            runs[engine] = measure(engine, rows, work, limit, options.baseline_bands)
        except Failed as failure:
            print(failure)
    size = data_of(options.rows, work)[0].stat().st_size
    print(f"{options.rows:,} rows, {size / 1e6:,.0f} MB, {os.cpu_count()} cores\n")
    print_speeds(runs)
    if "ours" in runs:
        print_stages(runs["ours"])
    print_findings(runs, work)
    if len(runs) < len(options.engines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
