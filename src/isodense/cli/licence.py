"""Under which licence the sources of prompts are, as far as it is known."""

from __future__ import annotations

import logging
import re
from typing import Any

from isodense.download.snapshot import Snapshot
from isodense.pipeline.errors import DataError

LICENSES = {  # of sources whose revision is pinned
    "sample": "apache-2.0",
    "skills": "apache-2.0",
    "hh": "mit",
    "ultrafeedback": "mit",
    "stack_exchange": "cc-by-sa-4.0",
}
IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]*")

log = logging.getLogger("isodense")


def licence(params: dict[str, Any]) -> tuple[str | None, str]:
    """Return the licence's identifier, if there is one, and what is known of the sources'.

    Parameters
    ----------
    params : dict
        Of ``data/examples``. The licence of the source ``hub`` is that of its card.
    """
    sections = {name: params.get(name) for name in params.get("sources", [])}
    known = {name: _of(name, section or {}) for name, section in sections.items()}
    lines = [
        f"- {name}{_revision(sections[name] or {})}: {one or 'not known to isodense'}"
        for name, one in known.items()
    ]
    said = "The prompts come from\n\n" + "\n".join(lines) if lines else "Not known to isodense."
    found = set(known.values())
    one = found.pop() if len(found) == 1 else "other" if found and None not in found else None
    return one, said


def _of(name: str, section: dict[str, Any]) -> str | None:
    if name != "hub":
        return LICENSES.get(name)
    try:
        return _of_card(Snapshot(str(section.get("repo")), str(section.get("revision"))).card)
    except DataError as error:
        log.warning("the licence is not known: %s", error.message)
        return None


def _of_card(text: str) -> str | None:
    """Return the one licence that a card names."""
    import yaml
    from huggingface_hub import DatasetCard

    try:
        found = DatasetCard(text).data.to_dict().get("license")
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):
        return None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    return found if isinstance(found, str) and IDENTIFIER.fullmatch(found) else None


def _revision(section: dict[str, Any]) -> str:
    names = [section.get(name) for name in ("repo", "revision")]
    return "".join(f" {name}" for name in names if name)
