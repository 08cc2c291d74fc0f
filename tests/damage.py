"""Damaging artifacts: with a manifest that no longer fits, and with one that was written anew."""

from __future__ import annotations

import json
import os
from pathlib import Path

from isodense.pipeline.artifact import MANIFEST, write_manifest


def reseal(folder: Path) -> Path:
    """Describe the files of an artifact anew, as whoever edits it on purpose would."""
    fields = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name in ("format_version", "files"):
        del fields[name]
    write_manifest(folder, fields.pop("kind"), **fields)
    return folder


def give_template(folder: Path, template: str) -> Path:
    """Give a model another chat template, as whoever edits it on purpose would."""
    (folder / "chat_template.jinja").write_text(template)
    return reseal(folder)


def flip(path: Path) -> None:
    """Change the last bit of a file, and neither its size nor its times."""
    found, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
