"""What the terminal shows of a run, as Dagster's event log tells it."""

import logging
import signal
import subprocess
import time
from collections.abc import Mapping

import dagster as dg
from rich.console import Console
from rich.markup import escape

from finetune_assets.commands.progress_bar import TrainingBar

POLL_SECONDS = 0.3


def follow(
    instance: dg.DagsterInstance, run_id: str, process: subprocess.Popen[bytes], console: Console
) -> None:
    """Print what happens until the run's process has ended and all its events are shown.

    Ctrl-C here, or a cancel in the Dagster UI, ends the run's process as a cancel.
    """
    cursor: str | None = None
    started, canceling = time.monotonic(), False
    bar = TrainingBar(console)
    try:
        while True:
            ended = process.poll() is not None
            try:
                cursor = _drain(instance, run_id, cursor, console, started, bar)
                if ended:
                    return
                if not canceling and _cancel_asked(instance, run_id):
                    canceling = True
                    process.send_signal(signal.SIGTERM)
                time.sleep(POLL_SECONDS)
            except KeyboardInterrupt:
                run = instance.get_run_by_id(run_id)
                if canceling or run is None:
                    process.kill()
                    raise
                console.print("canceling: the worker writes a checkpoint first")
                instance.report_run_canceling(run)
    finally:
        bar.end()


def _cancel_asked(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    asked = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
    return run is not None and run.status in asked


def _drain(
    instance: dg.DagsterInstance,
    run_id: str,
    cursor: str | None,
    console: Console,
    started: float,
    bar: TrainingBar,
) -> str | None:
    while True:
        connection = instance.get_records_for_run(run_id, cursor=cursor, limit=200)
        for record in connection.records:
            _show(record.event_log_entry, console, time.monotonic() - started, bar)
        cursor = connection.cursor
        if not connection.has_more:
            return cursor


def _show(entry: dg.EventLogEntry, console: Console, elapsed: float, bar: TrainingBar) -> None:
    clock = f"[dim]{elapsed:6.0f} s[/dim]"
    event = entry.dagster_event
    if event is None:
        message = entry.user_message
        if int(entry.level) >= logging.INFO and entry.step_key and "[pipes]" not in message:
            console.print(f"{clock}     {_escape(message)}", style="dim", highlight=False)
        return
    if event.event_type_value == "ASSET_OBSERVATION":
        observation = event.asset_observation_data.asset_observation
        values = {k: v.value for k, v in observation.metadata.items()}
        bar.observe(observation.asset_key.to_user_string(), values)
    elif event.is_step_materialization:
        bar.end()
        materialization = event.step_materialization_data.materialization
        metadata = {k: v.value for k, v in materialization.metadata.items()}
        how = "reused" if metadata["reused"] else f"made in {metadata['seconds']:.1f} s"
        name = materialization.asset_key.to_user_string()
        console.print(f"{clock} [green]✓[/green] {name:20} {how}{_detail(metadata)}")
    elif event.is_step_start:
        console.print(f"{clock} [cyan]→[/cyan] {event.step_key}", highlight=False)
    elif event.event_type_value == "ASSET_CHECK_EVALUATION":
        check = event.asset_check_evaluation_data
        if not check.passed:
            text = _escape(check.description or "")
            console.print(f"{clock} [yellow]![/yellow] {check.check_name}: {text}")
    elif event.is_step_failure:
        data, error = event.step_failure_data.user_failure_data, event.step_failure_data.error
        reason = (error.cause or error).message if error else ""
        said = reason if data is None else data.description or ""
        console.print(f"{clock} [red]✗[/red] {event.step_key}\n{_escape(said)}")


def _detail(metadata: Mapping[str, object]) -> str:
    if "dagster/row_count" in metadata:
        return f", {metadata['dagster/row_count']} rows"
    if "validation_loss" in metadata:
        return f", validation loss {metadata['validation_loss']:.4f}"
    if "decision" in metadata:
        return f", version {metadata['version']} {metadata['decision']}"
    return ""


def _escape(text: str) -> str:
    return escape(text.rstrip())
