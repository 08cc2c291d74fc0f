"""Running all checks of a checkout, before a long run of the pipeline.

Only the remotes are accessed over the network, to list files; nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich.text import Text

from isodense.doctor.checks.hardware import check_device, check_dtype, check_gpu_memory
from isodense.doctor.checks.installed import INSTALL, check_checkout, check_packages, check_path
from isodense.doctor.checks.project import Finding, Project
from isodense.doctor.checks.remotes import check_remotes
from isodense.doctor.checks.results import (
    check_artifacts,
    check_leakage,
    check_left_out,
    check_preflight,
    check_recall,
    check_reward,
)
from isodense.doctor.checks.settings import check_batches, check_launcher, check_params
from isodense.doctor.checks.space import check_cache, check_disk, check_incomplete, check_memory
from isodense.doctor.checks.versioned import check_code, check_links, check_lock
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.terminal import printable, rendered

CHECKS: tuple[Callable[[Project], Iterator[Finding]], ...] = (
    check_packages,
    check_checkout,
    check_path,
    check_params,
    check_batches,
    check_launcher,
    check_code,
    check_lock,
    check_links,
    check_remotes,
    check_disk,
    check_cache,
    check_incomplete,
    check_memory,
    check_device,
    check_dtype,
    check_gpu_memory,
    check_artifacts,
    check_preflight,
    check_left_out,
    check_recall,
    check_leakage,
    check_reward,
)
MARKS = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "problem": ("fail", "red")}


def find_project(folder: Path) -> Project:
    """Return the project that contains `folder`.

    Raises
    ------
    IsodenseError
        If no parent folder has a ``dvc.yaml`` and a ``params.yaml``.
    """
    for root in (folder.absolute(), *folder.absolute().parents):
        if (root / "dvc.yaml").is_file() and (root / "params.yaml").is_file():
            return Project(root)
    message = f"{folder.absolute()} is in no isodense project: no dvc.yaml with a params.yaml"
    raise IsodenseError(message, "change to the project's folder")


def examine(project: Project) -> Iterator[Finding]:
    """Yield the findings of all checks; a check that fails is a finding, too."""
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            yield from check(project)
        except IsodenseError as error:
            yield Finding(name, "problem", error.message, error.hint)
        except ImportError as error:  # check_packages names the package
            yield Finding(name, "problem", f"could not be looked at: {error}", INSTALL)
        except OSError as error:
            yield Finding(name, "warning", f"could not be looked at: {error}")


def describe(finding: Finding) -> str:
    """Return one finding as text for a terminal."""
    mark, colour = MARKS[finding.level]
    gap, text = " " * (5 - len(mark)), f"{finding.name}: {printable(finding.text)}"
    hint = f"\n       -> {printable(finding.hint)}" if finding.hint else ""
    shown = Text.assemble((f"[{mark}]", colour), gap, text, hint, no_wrap=True, overflow="ignore")
    return rendered(shown)


def summary(findings: Iterable[Finding]) -> str:
    """Return a line with the numbers of problems and warnings."""
    levels = [finding.level for finding in findings]
    return f"problems: {levels.count('problem')}, warnings: {levels.count('warning')}\n"
