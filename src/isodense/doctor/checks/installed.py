"""Checks of what is installed, and whether DVC's stages would run it."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from isodense.doctor.checks.project import Finding, Project

INSTALL = (
    "run `make repro`, or `pip install --editable '.[pipeline]'` in this project's environment"
)
RUN = ("", "pipeline", "report", "train", "hub")  # extras that the stages need, and none


def check_packages(_: Project) -> Iterator[Finding]:
    """Whether every package that the stages require is installed in a version that they support."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires("isodense") or []]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "warning", "isodense is not installed", INSTALL)
        return
    wrong = []
    needed = [
        one
        for one in wanted
        if one.name != "isodense"  # an extra that takes in others
        and (not one.marker or any(one.marker.evaluate({"extra": extra}) for extra in RUN))
    ]
    for one in needed:
        try:
            found = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
            continue
        if not one.specifier.contains(found, prereleases=True):
            wrong.append(f"{one.name} is {found}, not {one.specifier}")
    if wrong:
        yield Finding("packages", "problem", "; ".join(wrong), INSTALL)
        return
    shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("dvc", "torch"))
    yield Finding("packages", "ok", f"all {len(needed)} are here: {shown}, …")


def check_checkout(project: Project) -> Iterator[Finding]:
    """Whether the imported isodense is that of this checkout, as in the stages."""
    import isodense

    here, found = project.root / "src" / "isodense", Path(str(isodense.__file__)).parent
    if not here.is_dir():
        return
    if found.resolve() != here.resolve():
        text = f"the command is that of {found}; stages run {here}"
        yield Finding("checkout", "warning", text, INSTALL)
    else:
        yield Finding("checkout", "ok", f"isodense {isodense.__version__} of this checkout")


def check_path(_: Project) -> Iterator[Finding]:
    """Whether ``python`` and ``dvc`` on ``PATH``, which stages call, are of this environment."""
    here, name = Path(sys.executable).parent, "environment"
    for command in ("python", "dvc"):
        found = shutil.which(command)
        if found is None or Path(found).parent.resolve() != here.resolve():
            text = f"{command} on PATH is {found or 'not there'}, not that of {here}"
            hint = f"activate the environment: . {here / 'activate'}"
            yield Finding(name, "problem", text, hint)
            return
    yield Finding(name, "ok", f"python and dvc are those of {here}")
