"""`finetune init`: from data at hand to a dataset file that runs as it is."""
