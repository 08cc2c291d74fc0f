"""Every example in a docstring gives what it says, in the folder of a project that has been run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import isodense

MODULES = [found.name for found in pkgutil.walk_packages(isodense.__path__, "isodense.")]
EXAMPLES = [
    example
    for name in MODULES
    for example in doctest.DocTestFinder().find(importlib.import_module(name))
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_gives_what_it_says(example, finished, monkeypatch, tmp_path):
    monkeypatch.chdir(finished.root)
    monkeypatch.setenv("ISODENSE_CACHE", str(tmp_path))
    said: list[str] = []
    doctest.DocTestRunner().run(example, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("name", sorted({*isodense.__all__} - {"__version__"}))
def test_every_public_name_has_an_example(name):
    assert ">>> " in getattr(isodense, name).__doc__
