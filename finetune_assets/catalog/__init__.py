"""What a user declares: one YAML file is one dataset."""
