"""The command line: `finetune run`, `check`, `plan`, `init`, `schema`."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from finetune_assets import settings
from finetune_assets.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune language models on your own data: one YAML file, one asset graph.",
)
console = Console(highlight=False, soft_wrap=True, emoji=False)


@app.command()
def run(
    names: Annotated[list[str] | None, typer.Argument(help="Datasets, by file name.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every dataset of the catalog.")] = False,
    force: Annotated[bool, typer.Option(help="Recompute what could be reused.")] = False,
) -> None:
    """Run the whole graph for datasets: from their files to the model registry.

    Several datasets run one after another, as one Dagster backfill.
    """
    from finetune_assets.catalog import load as catalog

    with print_user_errors():
        chosen = catalog.names() if every else (names or [])
        if not chosen:
            known = ", ".join(catalog.names())
            raise UserError("finetune run", "no dataset named", f"the catalog has: {known}")
        for name in chosen:
            catalog.load(name)
    backfill = uuid.uuid4().hex[:8] if len(chosen) > 1 else None
    failed = [name for name in chosen if not _run_one(name, force, backfill)]
    if failed:
        console.print(f"[red]failed:[/red] {', '.join(failed)}")
        raise typer.Exit(1)


@app.command()
def check(
    name: Annotated[str | None, typer.Argument(help="Dataset; default: all.")] = None,
    rows: Annotated[int, typer.Option(help="Rows to show as the model will see them.")] = 3,
) -> None:
    """Validate dataset files, and show rows as the model will see them, with the loss mask."""
    from finetune_assets.catalog import load as catalog
    from finetune_assets.commands.check import show

    failures = 0
    for each in [name] if name else catalog.names():
        try:
            show(catalog.load(each), rows, console)
        except UserError as error:
            failures += 1
            console.print(f"[red]✗ {each}[/red]")
            console.print(str(error), markup=False)
    if failures:
        raise typer.Exit(1)


@app.command()
def plan(
    name: Annotated[str, typer.Argument(help="Dataset, by file name.")],
    gpu: Annotated[
        str | None,
        typer.Option(
            help="GPU to plan for, e.g. 'A100 80GB'; default: FINETUNE_DEVICE, or this machine."
        ),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="How many; default: `training.devices.count`.")
    ] = None,
) -> None:
    """Tell what training will need in memory, time and money, and what would make it fit."""
    from finetune_assets.catalog import load as catalog
    from finetune_assets.commands.plan import plan as make_plan
    from finetune_assets.commands.plan import show

    with print_user_errors():
        entry = catalog.load(name)
        made = make_plan(entry, gpu, devices)
        show(entry, made, console)
    if not made.fits:
        raise typer.Exit(1)


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the new dataset.")],
    origin: Annotated[
        str,
        typer.Option(
            "--from",
            help="File, folder, glob, s3:// URI, hub:ORG/NAME@REVISION, package.module:function, "
            "or with --query a postgresql:// or sqlite:// URI.",
        ),
    ],
    query: Annotated[str | None, typer.Option(help="SQL whose rows are read.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Model to tune; default: the one that ships in a package.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows to show as the model will see them.")] = 3,
    force: Annotated[bool, typer.Option(help="Overwrite a dataset of this name.")] = False,
) -> None:
    """Look at data, and write a commented dataset file for it into the catalog."""
    from finetune_assets.commands.check import show_tokens
    from finetune_assets.commands.proposal.file import require_free, write
    from finetune_assets.commands.proposal.propose import propose

    with print_user_errors():
        if not force:
            require_free(name)
        made = propose(name, origin, query, base)
        written = write(name, made.text, made.beside)
        console.print(f"[green]✓[/green] read {made.read}:")
        for line in made.seen:
            console.print(f"  {line}", markup=False)
        show_tokens(made.entry, made.rows, rows, console)
        console.print(f"wrote {', '.join(written)} into {settings.catalog_uri()}; next:")
        console.print(f"  finetune check {name}\n  finetune run {name}")


@app.command()
def schema(
    out: Annotated[Path | None, typer.Argument(help="File; default: standard output.")] = None,
) -> None:
    """Write the JSON Schema of dataset files, for editors."""
    from finetune_assets.catalog.load import json_schema

    text = json.dumps(json_schema(), indent=2) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text)


@app.command()
def home() -> None:
    """Prepare Dagster's instance folder and print where everything is."""
    print(f"export {settings.DAGSTER_VARIABLE}={settings.ensure_dagster_home()}")
    print(f"export {settings.MLFLOW_VARIABLE}={settings.mlflow_uri()}")
    print(f"export {settings.STORAGE_VARIABLE}={settings.storage_uri()}")
    print(f"export {settings.CATALOG_VARIABLE}={settings.catalog_uri()}")


def _run_one(name: str, force: bool, backfill: str | None) -> bool:
    import dagster as dg

    from finetune_assets.commands.follow import follow
    from finetune_assets.commands.run import close_abandoned
    from finetune_assets.commands.summary import print_summary

    settings.ensure_dagster_home()
    run_id = str(uuid.uuid4())
    command = [sys.executable, "-m", "finetune_assets.commands.run", name, run_id]
    command += ["--force"] if force else []
    command += [f"--backfill={backfill}"] if backfill else []
    console.print(f"[bold]{name}[/bold]  run {run_id}")
    with dg.DagsterInstance.get() as instance:
        close_abandoned(instance)
        log = settings.local_state_folder() / "logs" / f"{run_id}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            env, stderr = {**os.environ, "PYTHONUNBUFFERED": "1"}, subprocess.STDOUT
            process = subprocess.Popen(
                command, stdout=output, stderr=stderr, start_new_session=True, env=env
            )
        # A TERM of this process cancels as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        follow(instance, run_id, process, console)
        close_abandoned(instance)  # this one, if its process was killed
        status = instance.get_run_by_id(run_id)
        if status is None:
            console.print(f"[red]the run did not start; its last words are in {log}[/red]")
            console.print(log.read_text()[-2000:], markup=False)
            return False
        if process.returncode != 0:
            console.print(f"[red]{status.status.value}[/red]; log: {log}")
            if process.returncode < 0:
                console.print(f"the run's process was killed (signal {-process.returncode})")
            if process.returncode < 0 or status.status is dg.DagsterRunStatus.CANCELED:
                remedy = "what is complete is reused, training goes on from its last checkpoint"
                console.print(f"run again: {remedy}")
            return False
        print_summary(instance, name, console)
    return True


@contextmanager
def print_user_errors() -> Iterator[None]:
    """Print a user's error without a stack of frames, and end with code 1."""
    try:
        yield
    except UserError as error:
        console.print(str(error), markup=False, style="red")
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
