"""A training run and its processes: attempts, devices, recovery."""
