"""How a model computes fast: attention, adapters, loss, norms, generation."""
