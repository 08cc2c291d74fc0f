"""Files of a data set on the Hugging Face Hub, at one commit.

``huggingface_hub`` fetches them, not ``datasets.load_dataset``, which falls back to any cached
revision when the Hub cannot be reached, fetches all splits when one is requested, and stores a
second copy of all rows. Here the result is the requested revision or an error; a fetched file is
used again without a network (``HF_HUB_OFFLINE=1`` works after one download); and files are fetched
only when they are read, so a limit on pairs also limits the traffic. ``huggingface_hub`` retries
and resumes downloads: five attempts without progress, then an error.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from pathlib import Path

from isodense.pipeline.errors import DataError
from isodense.pipeline.hub_errors import clear_errors

COMMIT = re.compile(r"[0-9a-f]{40}")
SKIP = "set download.on_bad_row: skip, or pin another revision"
HINT = (
    "check the connection, HF_ENDPOINT (a mirror) and HF_HUB_OFFLINE, then run again: finished "
    "files are kept; or fetch the files on another machine and name them in the `local` source"
)


class Snapshot:
    """One commit of a data set, whose files are fetched on demand.

    Parameters
    ----------
    repo : str
        ``owner/name``.
    revision : str
        A commit, tag or branch; the file list of a commit is cached, so it works offline later.

    Attributes
    ----------
    files : list of str
        Paths of all files, sorted.
    card : str
        The text of ``README.md``.

    Raises
    ------
    DataError
        If the Hub cannot be reached, or has no such data set or revision.
    """

    def __init__(self, repo: str, revision: str) -> None:
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        if os.environ.get("CI"):
            disable_progress_bars()
        self.repo = repo
        with clear_errors(repo, f"revision {revision!r}", HINT):
            if not COMMIT.fullmatch(revision) and not constants.HF_HUB_OFFLINE:
                # where the Hub does not answer, the client would take what it knew last
                known = huggingface_hub.HfApi().dataset_info(repo, revision=revision)
                revision = str(known.sha)
            folder = huggingface_hub.snapshot_download(
                repo, repo_type="dataset", revision=revision, allow_patterns=["README.md"]
            )
            self.commit = Path(folder).name
            tree = huggingface_hub.get_cached_repo_tree(
                repo, repo_type="dataset", revision=self.commit
            )
        self.files = sorted(file.path for file in tree)
        readme = Path(folder, "README.md")
        self.card = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""

    def matching(self, pattern: str) -> Iterator[tuple[str, Path]]:
        """Fetch the files that match a pattern, one by one, in order of name.

        Parameters
        ----------
        pattern : str
            Glob pattern, such as ``data/train-*.parquet``.

        Yields
        ------
        tuple of (str, Path)
            The file's name for messages, ``owner/name/path``, and the local path.

        Raises
        ------
        DataError
            If no file matches, or one cannot be fetched.
        """
        names = [pattern] if pattern in self.files else fnmatch.filter(self.files, pattern)
        if not names:
            raise DataError(f"has no file {pattern}", self.repo, hint=self._choice(pattern))
        for name in names:
            yield f"{self.repo}/{name}", self._fetch(name)

    def _fetch(self, name: str) -> Path:
        import huggingface_hub

        with clear_errors(self.repo, name, HINT):
            path = huggingface_hub.hf_hub_download(
                self.repo, name, repo_type="dataset", revision=self.commit
            )
        return Path(path)

    def _choice(self, pattern: str) -> str:
        """Return a hint that lists the existing files where a pattern matches none."""
        folder = pattern.partition("*")[0].rpartition("/")[0]
        while folder and not any(name.startswith(folder + "/") for name in self.files):
            folder = folder.rpartition("/")[0]
        inside = f"{folder}/" if folder else ""
        names = (name.removeprefix(inside) for name in self.files if name.startswith(inside))
        found = sorted({name.partition("/")[0] for name in names})
        more = f" and {len(found) - 20} more" if len(found) > 20 else ""
        return f"{folder or 'the data set'} holds {', '.join(found[:20])}{more}"
