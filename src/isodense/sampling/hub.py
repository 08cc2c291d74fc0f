"""Weights that ``isodense push`` has put on the Hugging Face Hub, at a revision.

Only the artifact is fetched, not the table beside it; ``huggingface_hub`` keeps it in its cache, so
a revision is fetched once, and a commit that is there needs no network. A branch or tag does,
unless HF_HUB_OFFLINE says that the one that was fetched last will do.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from isodense.pipeline.errors import ArtifactError, DataError, IsodenseError
from isodense.pipeline.hub_errors import clear_errors

SCHEME = "hf://"
ADDRESS = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)(?:@(.+))?")
FOLDER = "data/density"  # of the repository, as of a project
COMMIT = re.compile(r"[0-9a-f]{40}")
SHOWN = 20  # revisions in a hint
HINT = (
    "check the connection, HF_ENDPOINT (a mirror) and HF_HUB_OFFLINE, then again: what was fetched "
    "is kept, and a full commit hash that is there needs no connection"
)


def parse(address: str) -> tuple[str, str | None]:
    """Return repository and revision of an address, ``hf://owner/name`` or ``…@revision``.

    Raises
    ------
    IsodenseError
        If it is no such address.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    found = ADDRESS.fullmatch(address)
    try:
        validate_repo_id(found[1] if found else "")
    except HFValidationError:
        found = None
    if found is None:
        message = f"{address} is no data set of the Hub"
        raise IsodenseError(message, "write it as hf://owner/name, or hf://owner/name@revision")
    return found[1], found[2]


def fetch_from_hub(address: str, path: str = FOLDER, rev: str | None = None) -> Path:
    """Fetch an artifact of a data set on the Hub and return the folder that it is in.

    Parameters
    ----------
    address : str
        ``hf://owner/name``, with ``@revision`` or without.
    path : str
        Where the artifact is in it.
    rev : str, optional
        A branch, tag or commit, by default that of the address, or the newest.

    Returns
    -------
    Path
        A folder in the cache of ``huggingface_hub``. Not to be changed.

    Raises
    ------
    DataError
        If there is no such data set or revision, or it cannot be fetched.
    ArtifactError
        If the data set has no such folder.
    IsodenseError
        If the address names another revision than `rev`.
    """
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    repo, at = parse(address)
    if rev and at and rev != at:
        raise IsodenseError(f"{address} names one revision, and rev={rev!r} another", "name one")
    rev = rev or at
    if os.environ.get("CI"):
        disable_progress_bars()
    with clear_errors(repo, f"revision {rev or 'main'!r}", HINT):
        snapshot = _snapshot(repo, path, rev or "main")
    folder = Path(snapshot, path)
    if not folder.is_dir():
        message = f"{SCHEME}{repo} has no {path} at {rev or 'main'}"
        raise ArtifactError(message, "name a data set that `isodense push` has written")
    return folder


def kept_in(address: str) -> Path:
    """Return the folder of all that was fetched of a data set, which may be deleted."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=parse(address)[0], repo_type="dataset")
    return Path(constants.HF_HUB_CACHE, name)


def _snapshot(repo: str, path: str, rev: str) -> str:
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        if not COMMIT.fullmatch(rev) and not constants.HF_HUB_OFFLINE:
            # where the Hub does not answer, the client would take what it knew last
            huggingface_hub.HfApi().dataset_info(repo, revision=rev)
        return huggingface_hub.snapshot_download(
            repo, repo_type="dataset", revision=rev, allow_patterns=[f"{path}/*"]
        )
    except errors.RevisionNotFoundError:
        raise DataError(f"has no revision {rev!r}", repo, hint=_revisions(repo)) from None


def _revisions(repo: str) -> str:
    """Return a hint that lists the branches and tags of a data set."""
    import huggingface_hub

    refs = huggingface_hub.HfApi().list_repo_refs(repo, repo_type="dataset")
    names = [ref.name for ref in (*refs.tags, *refs.branches)]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"name a full commit hash, or one of {', '.join(names[:SHOWN])}{more}"
