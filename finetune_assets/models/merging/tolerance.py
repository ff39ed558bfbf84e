"""How far the logits of a merged model may be from those of base and adapter."""

TOLERANCE = {"F32": 1e-4, "BF16": 2e-2, "F16": 5e-3}
"""Largest relative logit difference by stored dtype: rounding of the merged weights explains it."""
