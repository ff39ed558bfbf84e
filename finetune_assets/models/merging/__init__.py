"""Base and adapter as one model, proven equal to the pair."""
