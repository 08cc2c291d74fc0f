"""Names that are not part of a library's public API are there, and do what this code takes them to.

pyproject.toml bounds each of these libraries from above. Before a bound is raised, these tests have
to pass with the new version.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import tomllib
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from isodense.models.inference.prepacked import prepack

ROOT = Path(__file__).parents[1]


def test_each_library_with_a_private_name_has_an_upper_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    for name in ("torch", "umap-learn", "huggingface-hub"):
        assert any(clause.operator == "<" for clause in wanted[name]), name
        assert wanted[name].contains(importlib.metadata.version(name), prereleases=True)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_torchs_operators_of_onednn_multiply():
    assert hasattr(torch.ops.mkldnn, "_linear_pointwise")
    assert hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(48, 32), torch.nn.Linear(32, 16, bias=False))
        rows = torch.randn(64, 48)
    with torch.inference_mode():
        expected = model(rows)
        prepack(model)
        assert not any(type(layer) is torch.nn.Linear for layer in model)
        torch.testing.assert_close(model(rows), expected, rtol=1e-4, atol=1e-5)


def test_umaps_functions_take_a_graph_and_coordinates():
    from umap.umap_ import find_ab_params, fuzzy_simplicial_set, simplicial_set_embedding

    taken = inspect.signature(simplicial_set_embedding).parameters
    used = {"n_components", "initial_alpha", "a", "b", "gamma", "negative_sample_rate", "n_epochs",
            "init", "random_state", "metric", "metric_kwds", "densmap", "densmap_kwds",
            "output_dens", "tqdm_kwds"}  # fmt: skip
    assert used <= taken.keys()
    assert next(iter(taken)) == "data"
    assert {"knn_indices", "knn_dists"} <= inspect.signature(fuzzy_simplicial_set).parameters.keys()
    a, b = find_ab_params(1.0, 0.1)
    np.testing.assert_allclose([a, b], [1.577, 0.895], atol=2e-3)  # as UMAP's papers have them


def test_the_hub_lists_a_tree_that_it_has_seen(hub, tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "README.md").write_text("text")
    (tmp_path / "repo" / "rows.jsonl").write_text("{}\n")
    commit = hub.add("org/name", tmp_path / "repo")
    huggingface_hub.snapshot_download("org/name", repo_type="dataset", revision=commit)
    tree = huggingface_hub.get_cached_repo_tree("org/name", repo_type="dataset", revision=commit)
    assert sorted(file.path for file in tree) == ["README.md", "rows.jsonl"]


def test_no_other_private_name_is_used():
    """Attributes with an underscore of the three libraries, wherever they are in the code."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"\btorch(?:\.\w+)*\._\w+(?:\.\w+)*", text))
        found |= set(re.findall(r"(?:umap|huggingface_hub)\.(?:\w+\.)*_\w+", text))
        found |= set(re.findall(r"from (umap\.\w+) import", text))
    assert found == {
        "torch.ops.mkldnn._linear_pointwise",
        "torch.ops.mkldnn._reorder_linear_weight",
        "umap.umap_",
    }
