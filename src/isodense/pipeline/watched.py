"""Folders in which DVC watches the user's files: data, models, reward functions.

``params.yaml`` names files anywhere, but the deps of a stage in ``dvc.yaml`` are fixed paths: DVC
interpolates no list into them. So each stage that reads the user's files depends on one folder,
which may be empty; files from other places are copied there, or linked. DVC hashes what a link to a
file leads to; a link to a folder it does not follow.

Experiments in the queue and in temporary folders run in copies of the project, which hold what git
and DVC track and nothing else: a pattern could match fewer files there than the user sees.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from isodense.pipeline.errors import DataError

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


def require_tracked(names: Iterable[str | Path], param: str) -> None:
    """Check that an experiment's copy of the project has the user's files.

    Parameters
    ----------
    names : iterable of str or Path
        Files, folders and patterns, as `param` has them. Absolute ones are the same in every copy.
    param : str
        The param that names them.

    Raises
    ------
    DataError
        Naming a file that the user's own folder has and the copy lacks.
    """
    for place in lacking(names):
        message = "is not in this experiment's folder, which has what git and DVC track"
        hint = f"`git add {place}`, or `dvc add` a large one; without --queue and --temp it is read"
        raise DataError(f"{message} ({param})", place, hint=hint)


def link_untracked(names: Iterable[str | Path], param: str) -> None:
    """Link the user's files that an experiment's copy of the project lacks into it.

    DVC hashes what a link leads to, so the experiment notes what it has read. It does not hold the
    files: a warning says how it would.

    Parameters
    ----------
    names, param
        As for :func:`require_tracked`.
    """
    own = experiment_origin()
    for place in list(lacking(names)):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).symlink_to(own / place if own else place)
        message = "%s: %s is tracked by neither git nor DVC. It is read where it is; others cannot "
        log.warning(
            message + "repeat this experiment before you `git add` or `dvc add` it", param, place
        )


def lacking(names: Iterable[str | Path]) -> Iterator[str]:
    """Yield the files that the user's own folder has and this copy lacks, by relative names."""
    own = experiment_origin()
    if own is None:
        return
    for name in map(Path, names):
        if not name.expanduser().is_absolute():
            yield from _untracked(name, own)


def experiment_origin() -> Path | None:
    """Return the project of which this folder is an experiment's copy; None in the project itself.

    DVC names it to the commands of a stage.
    """
    own = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    return None if own == Path.cwd().resolve() else own


def _untracked(name: Path, own: Path) -> Iterator[str]:
    """Yield the files that are meant by a name in `own`, and are not there in this folder."""
    for found in sorted(own.glob(str(name))) if name.parts else ():
        inside = sorted(path for path in found.rglob("*") if path.is_file()) or [found]
        for path in inside:
            place = os.path.relpath(path, own)
            if not Path(place).exists():
                yield place


def _in_linked_folder(path: Path, folder: Path) -> bool:
    inside = [part for part in (path, *path.parents) if part.is_relative_to(folder)]
    return any(part.is_symlink() and part.is_dir() for part in inside if part != folder)
