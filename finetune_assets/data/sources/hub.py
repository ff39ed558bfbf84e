"""Rows of datasets of the Hugging Face library: on the hub, or saved to disk."""

from pathlib import Path
from typing import Any

from finetune_assets.catalog.sources import Source
from finetune_assets.data.sources.explain import explain_library_errors
from finetune_assets.data.sources.values import Rows
from finetune_assets.errors import UserError

HUB_TIMEOUT = 30.0
"""Seconds to wait for the hub's answer to what a revision is."""
SAVED_MARKS = ("state.json", "dataset_dict.json")
"""What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in a folder."""


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `save_to_disk` of the datasets library wrote this folder."""
    return any((folder / mark).is_file() for mark in SAVED_MARKS)


def hub_commit(hub: str, where: str) -> str:
    """Return the commit that NAME@REVISION is now; UserError where the hub does not tell."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    name, revision = hub.split("@")
    with explain_library_errors(where, "check the network and the name in `hub`"):
        try:
            info: Any = HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT)
            return info.sha
        except RevisionNotFoundError as error:
            cause = f"{name} has no revision {revision}"
            raise UserError(where, cause, "mend what follows @ in `hub`") from error
        except RepositoryNotFoundError as error:
            remedy = "mend `hub`; a private or gated dataset needs HF_TOKEN"
            raise UserError(where, f"the hub shows no dataset {name}", remedy) from error


def hub_rows(source: Source, where: str) -> Rows:
    """Yield the rows of a hub dataset, streamed, split after split; UserError for a wrong name."""
    hub = source.hub or ""
    commit = hub_commit(hub, where)
    from datasets import load_dataset

    with explain_library_errors(where, "check the network, `hub` and `subset`"):
        name = hub.split("@")[0]
        loaded: Any = load_dataset(name, source.subset, revision=commit, streaming=True)
        for part in _chosen(list(loaded), source.parts, where):
            yield from loaded[part]


def saved_rows(folder: Path, parts: list[str], where: str) -> Rows:
    """Yield the rows of a folder that `save_to_disk` wrote; UserError for a split it lacks."""
    import datasets

    with explain_library_errors(where, f"write {folder} again with save_to_disk"):
        loaded: Any = datasets.load_from_disk(str(folder))
        if isinstance(loaded, datasets.Dataset):
            loaded = {str(loaded.split or "train"): loaded}
        for part in _chosen(list(loaded), parts, where):
            yield from loaded[part]


def _chosen(available: list[str], parts: list[str], where: str) -> list[str]:
    missing = [part for part in parts if part not in available]
    if missing:
        cause = f"no split {missing} among {available}"
        raise UserError(where, cause, "mend `parts`, or leave it out")
    return parts or available
