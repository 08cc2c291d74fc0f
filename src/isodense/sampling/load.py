"""Weights from a folder, another repository or the Hub: what ``isodense.load_weights`` is."""

from __future__ import annotations

from pathlib import Path

from isodense.pipeline.artifact import MANIFEST
from isodense.pipeline.errors import ArtifactError, FormatError, IsodenseError
from isodense.sampling import weights
from isodense.sampling.hub import SCHEME, fetch_from_hub, kept_in
from isodense.sampling.remote import ADDRESS, fetch
from isodense.sampling.weights import Weights


def load_weights(
    source: str | Path,
    rev: str | None = None,
    path: str = "data/density",
    remote: str | None = None,
) -> Weights:
    """Load ``data/density`` memory-mapped and check it.

    Parameters
    ----------
    source : str or Path
        The artifact's folder. With `rev`, or where it is the address of a git repository
        (``https://…``, ``git@host:…``), the repository that has it: see
        :func:`isodense.sampling.remote.fetch`. ``hf://owner/name`` is a data set of the Hugging
        Face Hub that ``isodense push`` has written.
    rev : str, optional
        A tag, branch or commit of the repository.
    path : str
        Where the artifact is in the repository.
    remote : str, optional
        The repository's name for the DVC remote to read; by default its default.

    Returns
    -------
    Weights

    Raises
    ------
    ArtifactError
        If the artifact is incomplete, its arrays disagree, or a weight is not finite and positive;
        or if it cannot be fetched.
    IsodenseError
        If `source` and the other arguments contradict each other.

    Examples
    --------
    >>> import isodense
    >>> w = isodense.load_weights("data/density")
    >>> round(float(w.weights.sum()), 6)
    1.0
    >>> team = "https://git.example/team/prompts"
    >>> w = isodense.load_weights(team, rev="v1.0")  # doctest: +SKIP
    >>> w = isodense.load_weights("hf://team/prompt-weights")  # doctest: +SKIP
    """
    if str(source).startswith(SCHEME):
        if remote is not None:
            message = f"{source} is a data set of the Hub, and remote={remote!r} a DVC remote"
            raise IsodenseError(message, "leave remote out")
        folder, kept = fetch_from_hub(str(source), path, rev), kept_in(str(source))
    elif rev is None and remote is None and not _is_repository(source):
        return weights.load_weights(source)
    else:
        folder = kept = fetch(source, path, rev, remote)
    try:
        return weights.load_weights(folder)
    except FormatError as error:
        other = (
            "name another revision, or ask its owners to make it with an isodense as new as this"
        )
        hint = error.hint if error.newer else other
        raise FormatError(error.message, error.newer, hint) from None
    except ArtifactError as error:
        hint = f"name another path or revision, or delete {kept} to fetch it again"
        raise ArtifactError(error.message, hint) from None


def _is_repository(source: str | Path) -> bool:
    if ADDRESS.match(str(source)):
        return True
    folder = Path(source)
    return not (folder / MANIFEST).exists() and any(
        (folder / name).exists() for name in (".git", ".dvc")
    )
