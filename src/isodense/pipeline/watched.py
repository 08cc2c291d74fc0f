"""Folders in which DVC watches the user's files: data, models, reward functions.

``params.yaml`` names files anywhere, but the deps of a stage in ``dvc.yaml`` are fixed paths: DVC
interpolates no list into them. So each stage that reads the user's files depends on one folder,
which may be empty; files elsewhere are copied there, or linked (DVC hashes what a link leads to).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger("isodense")


def warn_unwatched(paths: Iterable[str | Path], folder: Path, param: str) -> None:
    """Warn of each path outside the folder that DVC watches.

    Parameters
    ----------
    paths : iterable of str or Path
        Files or folders that the stage reads.
    folder : Path
        The folder among the stage's deps.
    param : str
        The param that names the paths.
    """
    inside = folder.absolute()
    for path in map(Path, paths):
        absolute = path.expanduser().absolute()
        if not absolute.is_relative_to(inside):
            message = "%s names %s, outside %s: DVC will not see it change. Link it there: "
            message += "ln -s %s %s/, and name the link"
            log.warning(message, param, path, folder, absolute, folder)
