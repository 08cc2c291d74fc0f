"""Running a stage script: logging, errors without tracebacks, one summary line, timings.

Timings, peak memory and versions go to ``logs/<stage>.json``, which neither git nor DVC tracks,
because artifacts must be reproducible to the byte.
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
from isodense.pipeline.errors import IsodenseError, StorageError
from isodense.pipeline.extras import explained
from isodense.pipeline.storage import storing

log = logging.getLogger("isodense")


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the argument parser of a stage, with ``--params``."""
    result = argparse.ArgumentParser(
        prog=f"stages/{name}.py", description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    result.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file")
    return result


def progress() -> dict[str, Any]:
    """Return keyword arguments for tqdm: on stderr, silent in CI."""
    return {"disable": bool(os.environ.get("CI")) or None, "mininterval": 0.5, "file": sys.stderr}


def cache() -> Path:
    """Return the folder of intermediate results, which is outside DVC outputs.

    All workspaces of a clone share it, since DVC sets ``DVC_ROOT`` to the main clone in temporary
    and queued experiments, too.
    """
    default = Path(os.environ.get("DVC_ROOT", "."), ".cache", "isodense")
    return Path(os.environ.get("ISODENSE_CACHE", default))


def relaunch(argv: list[str]) -> None:
    """Replace this process by the launcher in ``ISODENSE_LAUNCH``, which runs this script.

    A command such as ``torchrun --nproc-per-node 8`` is not a param, because a stage gives the same
    bytes on a laptop and on a node. Nothing happens if the variable is empty, or in a process that
    a launcher has started.

    Parameters
    ----------
    argv : list of str
        Arguments of the script.

    Raises
    ------
    IsodenseError
        If the command cannot be run.
    """
    launcher = shlex.split(os.environ.get("ISODENSE_LAUNCH", ""))
    if not launcher or "RANK" in os.environ:
        return
    del os.environ["ISODENSE_LAUNCH"]  # not every launcher of one process sets RANK
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")  # not 30 s: to finish a step
    try:
        os.execvp(launcher[0], [*launcher, sys.argv[0], *argv])  # noqa: S606 - the user's own
    except OSError as error:
        message = f"ISODENSE_LAUNCH names {launcher[0]!r}, which cannot be run: {error.strerror}"
        raise IsodenseError(message, "correct it, or activate the environment it is in") from None


def run(name: str, main: Callable[[list[str]], str]) -> None:
    """Run the `main` of a stage; on an error, print it and exit.

    Parameters
    ----------
    name : str
        Name of the stage.
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
        with storing(Path.cwd()), explained():
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
        try:
            _write_timings(name, seconds)
        except (OSError, StorageError) as error:  # the stage's work is done and published
            log.warning("its timings are not written: %s", error)


def peak_rss() -> int:
    """Return the largest resident memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 2**10  # others count KiB


def _write_timings(name: str, seconds: float) -> None:
    versions = {
        package: importlib.metadata.version(package)
        for package in ("numpy", "torch", "transformers", "trl", "pynndescent", "umap-learn", "dvc")
    }
    write_json(
        Path("logs") / f"{name}.json",
        {
            "seconds": round(seconds, 2),
            "peak_rss_mib": round(peak_rss() / 2**20),
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "versions": versions,
        },
    )
