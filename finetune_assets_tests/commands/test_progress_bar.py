"""The bar of a training run: what it shows, and that pipes get none."""

import io

from rich.console import Console

from finetune_assets.commands.progress_bar import TrainingBar, shown

VALUES = {
    "step": 12,
    "steps": 140,
    "train_loss": 1.2345,
    "tokens_per_second": 410.4,
    "process_peak_gb": 3.14,
    "seconds_left": 125,
}


def test_the_bar_shows_step_loss_speed_memory_and_what_is_left() -> None:
    assert shown(VALUES) == "loss 1.234 · 410 tokens/s · 3.1 GB · 2 min 5 s left"
    output = io.StringIO()
    bar = TrainingBar(Console(file=output, force_terminal=True, width=120))
    bar.observe("adapters", VALUES)
    bar.end()
    text = output.getvalue()
    assert "adapters" in text
    assert "12/140" in text
    assert "loss 1.234" in text


def test_an_output_that_is_no_terminal_gets_no_bar() -> None:
    output = io.StringIO()
    bar = TrainingBar(Console(file=output, width=120))
    bar.observe("adapters", VALUES)
    bar.observe("adapters", {"unrelated": 1})
    bar.end()
    assert output.getvalue().strip() == ""
