"""The command line: `finetune ...` and what it starts."""
