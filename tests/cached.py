"""What tests of caches change besides params and inputs: libraries, the device, the code."""

from __future__ import annotations

import importlib.metadata

import pytest

from isodense.pipeline.cache import cache_key

CHANGES = ("library", "device", "code")


def change(what: str, module: str, library: str, patch: pytest.MonkeyPatch) -> None:
    """Change one of `CHANGES` for the cache of a module, as it would be seen at a later run.

    A module with a recipe version gets another one; of one without, the source of every package
    reads as another.
    """
    if what == "library":
        real = importlib.metadata.version
        patch.setattr("importlib.metadata.version", lambda n: "99" if n == library else real(n))
    elif what == "code":
        try:
            patch.setattr(f"{module}.RECIPE", 99)
        except AttributeError:
            patch.setattr("isodense.pipeline.cache.source_sha256", lambda packages: "other")
    else:
        other = {"cpu": "another"}  # a module that names no device fails here
        patch.setattr(
            f"{module}.cache_key",
            lambda **parts: cache_key(**parts | {"device": other[parts["device"]]}),
        )
