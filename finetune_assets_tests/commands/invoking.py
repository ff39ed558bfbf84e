"""The command line, called in this process."""

from typer.testing import CliRunner

from finetune_assets.commands.cli import app


def invoke(*arguments: str) -> tuple[int, str]:
    """Return the exit code of `finetune` and what it printed, 200 characters wide."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output
