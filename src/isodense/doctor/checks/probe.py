"""Script that asks one remote to list its files, in a process that can be killed when it hangs.

Arguments are the project's folder and the remote's name; the output is JSON. Other errors of the
remote's library end the process; the last line of standard error says what is wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

EXTRAS = {"s3": "s3", "ssh": "ssh", "sftp": "ssh", "gs": "gs", "gcs": "gs", "azure": "azure"}
WRONG = "check the network, and its url, endpoint and credentials: dvc remote list"


def probe(root: str, name: str) -> tuple[str, str, str]:
    """Return level, text and hint of a finding about one remote.

    Parameters
    ----------
    root : str
        Folder of the project.
    name : str
        Name of the remote.
    """
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.fs import get_cloud_fs
    from dvc_objects.fs.errors import RemoteMissingDepsError

    config = Config(f"{root}/.dvc")
    try:
        cls, settings, path = get_cloud_fs(config, name=name)
        return "ok", _list(cls(**settings), path, root), ""
    except RemoteMissingDepsError as error:
        return "problem", f"needs {', '.join(error.missing_deps)}, not installed", _pip(error.url)
    except PermissionError as error:
        return "problem", f"refuses: {error}", f"check who you are there; {WRONG}"
    except ImportError as error:  # the extra of the remote is missing
        return "problem", f"cannot be used: {error}", _pip(config["remote"][name]["url"])
    except (DvcException, OSError) as error:
        return "problem", f"does not answer: {error}", WRONG


def _list(fs: Any, path: str, root: str) -> str:
    """Return the finding's text about the files at the path of a remote."""
    if fs.protocol in ("http", "https"):  # web servers need not list folders
        if not any(map(fs.exists, [path, *_objects(f"{path}/files/md5", root)])):
            raise OSError("nothing can be read there")
        return "answers"
    try:
        entries = fs.ls(path, detail=False)
    except FileNotFoundError:
        bucket = fs.parts(path)[0] if fs.protocol in ("s3", "gs", "azure") else None
        if bucket and not fs.exists(bucket):
            raise OSError(f"there is no bucket {bucket}") from None
        return "is not there yet: the first dvc push makes it"
    return f"answers, {'with' if entries else 'without'} files"


def _objects(store: str, root: str) -> list[str]:
    """Return the paths in a store of the outputs in ``dvc.lock``."""
    try:
        lock = yaml.safe_load(Path(root, "dvc.lock").read_text(encoding="utf-8"))
    except OSError:
        return []
    outs = [out for stage in lock["stages"].values() for out in stage.get("outs", [])]
    return [f"{store}/{out['md5'][:2]}/{out['md5'][2:]}" for out in outs if "md5" in out]


def _pip(url: str) -> str:
    scheme = url.partition("://")[0]
    extra = EXTRAS.get(scheme)
    return f"pip install '{f'isodense[{extra}]' if extra else f'dvc[{scheme}]'}'"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(*sys.argv[1:])))
