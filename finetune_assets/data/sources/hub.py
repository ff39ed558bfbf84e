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
    """Return the commit that NAME@REVISION is now.

    Raises:
        UserError: the hub does not answer, or has no such dataset or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    name, revision = hub.split("@")
    with explain_library_errors(where, "check the network and the name in `hub`"):
        try:
            info: Any = HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT)
            return info.sha
        except RevisionNotFoundError as error:
            raise UserError(
                where, f"{name} has no revision {revision}", "mend what follows @ in `hub`"
            ) from error
        except RepositoryNotFoundError as error:
            raise UserError(
                where,
                f"the hub shows no dataset {name}",
                "mend `hub`; a private or gated dataset needs HF_TOKEN",
            ) from error


def hub_rows(source: Source, where: str) -> Rows:
    """Yield the rows of a hub dataset, streamed, split after split.

    Raises:
        UserError: as `hub_commit` does, or there is no such subset or split.
    """
    hub = source.hub or ""
    commit = hub_commit(hub, where)
    import datasets

    with explain_library_errors(where, "check the network, `hub` and `subset`"):
        loaded: Any = datasets.load_dataset(
            hub.split("@")[0], source.subset, revision=commit, streaming=True
        )
        for part in _chosen(list(loaded), source.parts, where):
            yield from loaded[part]


def saved_rows(folder: Path, parts: list[str], where: str) -> Rows:
    """Yield the rows of a folder that `save_to_disk` wrote, split after split.

    Raises:
        UserError: the folder cannot be read, or has no such split.
    """
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
        raise UserError(
            where, f"no split {missing} among {available}", "mend `parts`, or leave it out"
        )
    return parts or available
