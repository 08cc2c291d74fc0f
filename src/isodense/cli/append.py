"""Taking new files of prompts into the project: ``params.yaml``, ``dvc repro density``, comparison.

The files go to the end of ``download.local.files``, and ``local`` to the end of
``download.sources``, so that the prompts that were there keep their rows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isodense.experiments.running import environ
from isodense.inspect.growth import Before, Growth, compare, remember
from isodense.pipeline.artifact import replacing
from isodense.pipeline.errors import IsodenseError

PARAMS, LOCK = Path("params.yaml"), Path("dvc.lock")
SAFE = "params.yaml and dvc.lock are as before; `dvc checkout` puts the former data back"
EDITED = "params.yaml has been edited meanwhile and is left so; dvc.lock is as before"


def add_files(text: str, files: Sequence[str]) -> str:
    """Return ``params.yaml`` with more files in ``download.local.files``, and ``local`` in use.

    Only what is added changes: comments, order and layout stay.

    Parameters
    ----------
    text : str
        The file as it is.
    files : sequence of str

    Raises
    ------
    IsodenseError
        If the lists are written in a way that cannot be added to safely.
    """
    import yaml

    wanted = yaml.safe_load(text)
    download = wanted["download"]
    try:
        if "local" not in download["sources"]:
            download["sources"] = [*download["sources"], "local"]
            text = _append(text, ("download", "sources"), ["local"])
        if files:
            download["local"]["files"] = [*download["local"]["files"], *files]
            text = _append(text, ("download", "local", "files"), files)
        right = yaml.safe_load(text) == wanted
    except (yaml.YAMLError, StopIteration):  # a key that comes in by <<
        right = False
    if not right:
        message = "params.yaml is written in a way that this command cannot add to"
        raise IsodenseError(
            message, "add local to download.sources, and the files to download.local.files"
        )
    return text


def _append(text: str, key: tuple[str, ...], items: Sequence[str]) -> str:
    """Return `text` with items at the end of a list, written as the list is."""
    import yaml

    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for name in key:
        node = next(value for found, value in node.value if found.value == name)
    shown = [_scalar(item) for item in items]
    if node.flow_style:
        end = node.end_mark.index - 1
        joined = (", " if node.value else "") + ", ".join(shown)
        return text[:end].rstrip(" ") + joined + text[end:]
    newline = "\r\n" if "\r\n" in text else "\n"
    text += "" if text.endswith("\n") else newline
    end = text.find("\n", node.value[-1].end_mark.index) + 1
    indent = " " * node.start_mark.column
    lines = "".join(f"{indent}- {item}{newline}" for item in shown)
    return text[:end] + lines + text[end:]


def _scalar(text: str) -> str:
    """Return a string as YAML has it: plain where that is read as the same string."""
    import yaml

    plain = all(letter.isalnum() or letter in "._/-" for letter in text)
    return text if plain and yaml.safe_load(f"[{text}]") == [text] else json.dumps(text)


def update(files: Sequence[Path], since: str | None = None) -> Growth:
    """Take new files in, run ``dvc repro density``, and compare.

    Parameters
    ----------
    files : sequence of Path
        Files of any form that the source ``local`` reads. Those in ``params.yaml`` already are
        read again.
    since : str, optional
        A git revision to compare with; by default the state before.

    Raises
    ------
    IsodenseError
        If a file is no data, or DVC fails; ``params.yaml`` and ``dvc.lock`` are then as before.
        If there is nothing to compare with.
    """
    from isodense.download.collect import Tally
    from isodense.download.params import DownloadParams
    from isodense.download.sources import local
    from isodense.pipeline import params

    if not Path("dvc.yaml").is_file():
        message = "there is no dvc.yaml here"
        raise IsodenseError(message, "run `isodense update` in the project's folder")
    section = params.load(PARAMS, "download", DownloadParams)
    if files and section.local.limit is not None:
        message = f"download.local.limit is {section.local.limit}, so files at the end may not come"
        raise IsodenseError(message, "set it to null in params.yaml")
    tally = Tally(section.on_bad_row)
    if absent := [file for file in files if not file.expanduser().is_file()]:
        raise IsodenseError(f"{absent[0]} is not a file", "name files of prompts")
    names = [_name(file) for file in files]
    for name in names:  # faults show before anything changes
        one = section.local.model_copy(update={"files": [name], "heldout": []})
        for _ in local.load(one, tally.bad_row):
            pass
    known = {Path(file).expanduser().resolve() for file in section.local.files}
    more = [name for name in dict.fromkeys(names) if Path(name).resolve() not in known]
    before = _earlier(since)
    former = PARAMS.read_bytes()
    added = add_files(former.decode("utf-8"), more).encode() if files else former
    with _restored_on_failure(former, added):
        if files:
            _write(PARAMS, added)
            if len(more) < len(set(names)):  # outside data/raw DVC does not see a file change
                _dvc("repro", "--force", "--single-item", "download")
        _dvc("repro", "density")
    return compare(before, Path("data"))


def _name(file: Path) -> str:
    """Return how ``params.yaml`` names a file: from the project's folder where it is inside."""
    path = Path(os.path.normpath(file.expanduser().absolute()))  # a link keeps its own name
    root = Path.cwd()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _earlier(since: str | None) -> Before:
    data = Path("data")
    if since is None:
        return remember(data / "prompts", data / "density", data / "embeddings")
    from isodense.sampling.remote import fetch

    prompts, density = (fetch(Path.cwd(), f"data/{name}", since) for name in ("prompts", "density"))
    return remember(prompts, density, None)


@contextmanager
def _restored_on_failure(former: bytes, added: bytes) -> Iterator[None]:
    """Put ``params.yaml`` and ``dvc.lock`` back, and say so, if the block fails or is stopped.

    ``params.yaml`` is left alone where it is not as this command wrote it: DVC runs for hours,
    during which people edit it.
    """
    lock, done = LOCK.read_bytes() if LOCK.is_file() else None, False
    try:
        yield
        done = True
    finally:
        if not done:
            if lock is not None:
                _write(LOCK, lock)
            if PARAMS.read_bytes() in (former, added):
                _write(PARAMS, former)
                sys.stderr.write(f"{SAFE}\n")
            else:
                sys.stderr.write(f"{EDITED}\n")


def _write(path: Path, content: bytes) -> None:
    """Replace a file, whole and with its permissions; nothing is done where it is so already."""
    if path.is_file() and path.read_bytes() == content:
        return
    with replacing(path.resolve()) as staging:
        staging.write_bytes(content)
        if path.exists():
            shutil.copymode(path, staging)


def _dvc(*arguments: str) -> None:
    """Run dvc with its output on standard error, stages with this interpreter."""
    command = [sys.executable, "-m", "dvc", *arguments]
    with subprocess.Popen(command, env=environ(), stdout=sys.stderr) as child:
        try:
            status = child.wait()
        except KeyboardInterrupt:
            child.wait()  # it was interrupted as well, and finishes what must be
            raise
    if status:
        hint = "correct what it says above; the same command goes on from the finished shards"
        raise IsodenseError(f"`dvc {' '.join(arguments)}` failed", hint)
