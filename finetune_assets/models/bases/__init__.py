"""Base models: what a reference means, how the base is prepared, how its files are laid out."""
