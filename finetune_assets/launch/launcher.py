"""Who starts workers: a resource, so that a deployment can start them where it likes."""

import sys
from abc import ABC, abstractmethod

import dagster as dg

from finetune_assets.launch.process_group import GRACE_SECONDS, ProcessGroupClient
from finetune_assets.storage.job import Job

WORKER = "finetune_assets.launch.worker"
"""Module that a worker process runs, with the asset as its argument and a Job as Pipes extras."""


class Launcher(dg.ConfigurableResource, ABC):
    """Starts the worker that makes an artifact, and waits for it.

    Another launcher runs the same module elsewhere, such as in a Kubernetes pod by
    `dagster_k8s.PipesK8sClient` or as a Ray job, where the stores can be reached.
    """

    @abstractmethod
    def launch(self, context: dg.AssetExecutionContext, asset: str, job: Job) -> None:
        """Return when the artifact is published, or raise what kept the worker from its end.

        A UserError that it reported is raised by `launch.process_group.raise_reported`.
        """


class ProcessGroupLauncher(Launcher):
    """Starts the worker on this machine, in a process group of its own."""

    grace_seconds: float = GRACE_SECONDS
    """From TERM to KILL, when a run is canceled."""

    def launch(self, context: dg.AssetExecutionContext, asset: str, job: Job) -> None:
        """Run the worker to its end."""
        command = [sys.executable, "-m", WORKER, asset]
        client = ProcessGroupClient(self.grace_seconds)
        client.run(context, command, extras=job.model_dump(mode="json"))
