"""The frame of a stage script: logging, errors without tracebacks, one summary line, timings.

Timings, peak memory and versions go to ``logs/<stage>.json``, which neither git nor DVC tracks,
because artifacts must repeat to the byte.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isodense.pipeline.artifact import write_json
from isodense.pipeline.errors import IsodenseError

log = logging.getLogger("isodense")


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the argument parser of a stage, with ``--params``."""
    made = argparse.ArgumentParser(
        prog=f"stages/{name}.py", description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file")
    return made


def progress() -> dict[str, Any]:
    """Return the tqdm settings of the project: on stderr, silent in CI."""
    return {"disable": bool(os.environ.get("CI")) or None, "mininterval": 0.5, "file": sys.stderr}


def cache() -> Path:
    """Return the scratch folder outside all outputs, shared by all workspaces of a clone.

    DVC sets ``DVC_ROOT`` to the main clone also in temporary and queued experiments.
    """
    default = Path(os.environ.get("DVC_ROOT", "."), ".cache", "isodense")
    return Path(os.environ.get("ISODENSE_CACHE", default))


def relaunch(argv: list[str]) -> None:
    """Replace this process by the launcher that ``ISODENSE_LAUNCH`` names, running this script.

    A command such as ``torchrun --nproc-per-node 8`` is not a param: the same stage runs on a
    laptop and on a node, and gives the same bytes.

    Parameters
    ----------
    argv : list of str
        The script's arguments.

    Raises
    ------
    IsodenseError
        If there is no such command.
    """
    launcher = shlex.split(os.environ.get("ISODENSE_LAUNCH", ""))
    if not launcher or "RANK" in os.environ:
        return
    del os.environ["ISODENSE_LAUNCH"]  # a launcher of one process need not set RANK
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")  # to finish a step; it is 30
    try:
        os.execvp(launcher[0], [*launcher, sys.argv[0], *argv])  # noqa: S606 - the user's own
    except OSError as error:
        message = f"ISODENSE_LAUNCH names {launcher[0]!r}, which cannot be run: {error.strerror}"
        raise IsodenseError(message, "correct it, or activate the environment it is in") from None


def run(name: str, main: Callable[[list[str]], str]) -> None:
    """Run a stage's `main` and exit.

    Parameters
    ----------
    name : str
        The stage.
    main : callable
        Takes the command-line arguments and returns the summary line.
    """
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        level=logging.INFO if first else logging.WARNING,
        format=f"[{name}] %(message)s",
        stream=sys.stderr,
    )
    for noisy in ("httpx", "httpcore", "urllib3", "filelock", "faiss"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    start = time.perf_counter()
    try:
        summary = main(sys.argv[1:])
    except IsodenseError as error:
        sys.stderr.write(f"[{name}] error: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write(f"[{name}] interrupted; run it again to go on\n")
        sys.exit(130)
    seconds = time.perf_counter() - start
    log.info("%s (%.1f s)", summary, seconds)
    if first:
        _write_timings(name, seconds)


def _write_timings(name: str, seconds: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    versions = {
        package: importlib.metadata.version(package)
        for package in ("numpy", "torch", "transformers", "trl", "pynndescent", "umap-learn", "dvc")
    }
    write_json(
        Path("logs") / f"{name}.json",
        {
            "seconds": round(seconds, 2),
            "peak_rss_mib": round(peak),
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "versions": versions,
        },
    )
