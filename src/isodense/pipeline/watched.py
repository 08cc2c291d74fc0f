"""Folders in which DVC watches the user's files: data, models, reward functions.

``params.yaml`` names files anywhere, but the deps of a stage in ``dvc.yaml`` are fixed paths: DVC
interpolates no list into them. So each stage that reads the user's files depends on one folder,
which may be empty; files from other places are copied there, or linked. DVC hashes what a link to a
file leads to; a link to a folder it does not follow.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger("isodense")


def warn_unwatched(paths: Iterable[str | Path], folder: Path, param: str) -> None:
    """Warn of each path that DVC does not watch.

    Parameters
    ----------
    paths : iterable of str or Path
        Files or folders that the stage reads.
    folder : Path
        The folder among the stage's deps.
    param : str
        The param that names the paths.
    """
    for path in map(Path, paths):
        absolute = path.expanduser().absolute()
        command = "cp -rs" if absolute.is_dir() else "ln -s"
        hint = f"{command} {absolute.resolve()} {folder}/"
        if not absolute.is_relative_to(folder.absolute()):
            message = (
                "%s names %s, outside %s: DVC will not see it change. Link it there, and name "
            )
            log.warning(message + "the link: %s", param, path, folder, hint)
        elif _in_linked_folder(absolute, folder.absolute()):
            message = (
                "%s names %s, in a link to a folder: DVC will not see it change. Link the files "
            )
            log.warning(message + "instead: remove the link, then %s", param, path, hint)


def _in_linked_folder(path: Path, folder: Path) -> bool:
    inside = [part for part in (path, *path.parents) if part.is_relative_to(folder)]
    return any(part.is_symlink() and part.is_dir() for part in inside if part != folder)
