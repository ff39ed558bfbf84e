"""The trainer that runs in a worker process, and the hardware it runs on."""
