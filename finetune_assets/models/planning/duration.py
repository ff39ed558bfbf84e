"""Spans of time as people say them."""


def duration_text(seconds: float) -> str:
    """Return hours, minutes and seconds as text, of which the two that matter: `4 min 20 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
