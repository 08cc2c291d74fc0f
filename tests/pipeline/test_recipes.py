"""Each recipe version of a cache gives the values that were recorded for it."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from tests.recipes import RECIPES, recorded

HINT = "values changed: raise RECIPE beside the code, then python -m tests.recipes"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_what_was_recorded(name: str, tmp_path):
    found, expected = RECIPES[name][1](tmp_path), recorded(name)
    assert found.keys() == expected.keys()
    for case, values in found.items():
        if isinstance(values, str):
            assert values == expected[case], HINT
        else:
            np.testing.assert_allclose(values, expected[case], rtol=0, atol=2e-6, err_msg=HINT)


TORCH = {"torch", "transformers"}


@pytest.mark.parametrize(
    ("module", "libraries"),
    [
        ("embeddings.build", TORCH),
        ("reward.features", TORCH),
        ("models.inference.completions", TORCH),
        ("reward.trl", TORCH | {"trl", "accelerate"}),
        ("train.train", TORCH | {"trl", "accelerate", "peft"}),
    ],
)
def test_keys_name_every_library_that_computes(module: str, libraries: set[str]):
    assert set(importlib.import_module(f"isodense.{module}").LIBRARIES) == libraries
