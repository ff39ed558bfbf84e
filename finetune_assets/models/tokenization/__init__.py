"""Chat templates, tokens, labels and packing."""
