"""Reading the prompts artifact: ids, conversations and splits, in the order of all row arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isodense.artifacts import ids_sha256, read_manifest
from isodense.errors import ArtifactError
from isodense.records import read_jsonl

FILE = "prompts.jsonl"


@dataclass(frozen=True)
class PromptSet:
    """Unique prompts in order of first appearance.

    Attributes
    ----------
    rows : list of dict
        As stored: ``id, prompt, text, count, sources, split`` and, where known, ``label``.
    """

    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> list[str]:
        """Prompt ids, in row order."""
        return [row["id"] for row in self.rows]

    @property
    def texts(self) -> list[str]:
        """What the encoder reads, in row order."""
        return [row["text"] for row in self.rows]

    @property
    def labels(self) -> list[str] | None:
        """Known labels in row order, or None unless every row has one."""
        labels = [row.get("label") for row in self.rows]
        return None if not labels or None in labels else labels  # type: ignore[return-value]

    @property
    def ids_sha256(self) -> str:
        """Hash that ties row-aligned arrays to these prompts."""
        return ids_sha256(self.ids)

    def split(self, name: str) -> PromptSet:
        """Return the prompts of the split ``"train"`` or ``"heldout"``, in order."""
        return PromptSet([row for row in self.rows if row["split"] == name])

    def positions(self, name: str) -> list[int]:
        """Return the row numbers of a split."""
        return [index for index, row in enumerate(self.rows) if row["split"] == name]


def load_prompts(folder: str | Path) -> PromptSet:
    """Load ``data/prompts`` and check that the rows are those of its manifest.

    Raises
    ------
    ArtifactError
        If the artifact is incomplete or its ids are not the manifest's.
    """
    manifest = read_manifest(folder, "prompts")
    prompts = PromptSet([row for _, row in read_jsonl(Path(folder) / FILE)])
    if prompts.ids_sha256 != manifest["ids_sha256"]:
        message = f"{Path(folder) / FILE} does not hold the prompts of its manifest"
        raise ArtifactError(message, "run `dvc repro prompts`")
    return prompts
