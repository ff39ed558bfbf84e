"""One dataset is one partition, and a few things every asset shares."""

import dagster as dg

datasets = dg.DynamicPartitionsDefinition(name="datasets")

OWNER = "team:ml-platform"
GPU_POOL = "gpu"
GPU_TAGS = {
    "dagster-k8s/config": {"container_config": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}}
}
"""Kubernetes gives a step with these tags a GPU; elsewhere they say that it wants one."""


class Force(dg.Config):
    """Run configuration of every asset."""

    force: bool = False
    """Recompute, even where an artifact with this fingerprint exists."""
