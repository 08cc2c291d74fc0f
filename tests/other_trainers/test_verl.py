"""verl's own data set, sampler and scorer on an export; run where verl is installed.

docs/other-trainers.md has the commands that make an environment for it.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import isodense
from isodense.cli.export import Draws, export
from isodense.prompts.reader import load_prompts
from tests import tiny
from tests.cli.test_export import COUNT, PAGE, write
from tests.prompts.test_deduplicate import pair
from tests.thinking import CALLED, TOOLS
from tests.tiny import user

verl = pytest.importorskip("verl")
DATA_SOURCE = "openai/gsm8k"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        pair(user(f"prompt {i}"), answer=i, data_source=DATA_SOURCE, topics=[f"t{i % 3}"])
        for i in range(COUNT)
    ]
    return write(tmp_path / "data", rows)


def config(**more: object):
    settings = {
        "max_prompt_length": 200,
        "filter_overlong_prompts": True,
        "filter_overlong_prompts_workers": 1,
        "return_raw_chat": True,
        "shuffle": False,
        "seed": 4,
        "dataloader_num_workers": 0,
        "sampler": None,
    }
    return OmegaConf.create(settings | more)


def factories():
    """Return verl's functions that build its data set and its sampler, wherever they are."""
    try:
        from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler  # 0.9
    except ImportError:
        from verl.trainer.main_ppo import create_rl_dataset, create_rl_sampler
    return create_rl_dataset, create_rl_sampler


def made(path: Path, settings):
    build, _ = factories()
    return build([str(path)], settings, tiny.tokenizer(), None)


def block(name: str, folder: Path) -> Path:
    """Write a file of the page, and return its path."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (folder / name).write_text(next(text for text in blocks if name in text))
    return folder / name


def test_verl_reads_a_plan_in_its_order(data: Path, tmp_path: Path):
    export(data, "verl", tmp_path / "plan.parquet", draws=Draws(50, seed=2))
    settings = config()
    dataset = made(tmp_path / "plan.parquet", settings)
    sampler = factories()[1](settings, dataset)
    weights = isodense.load_weights(data / "density")
    expected = isodense.draw(weights.weights, 50, seed=2).tolist()
    texts = load_prompts(data / "prompts").split("train").texts
    rows = [dataset[row] for row in sampler]
    assert [row["extra_info"]["draw"] for row in rows] == list(range(50))
    for row, place in zip(rows, expected, strict=True):
        asked = int(texts[place].split()[-1])
        assert row["raw_prompt"] == user(f"prompt {asked}")
        assert row["reward_model"]["ground_truth"] == str(asked)
        assert row["extra_info"]["topics"] == [f"t{asked % 3}"]


def test_verls_scorer_compares_the_ground_truth(data: Path, tmp_path: Path):
    from verl.utils.reward_score import default_compute_score

    export(data, "verl", tmp_path / "train.parquet")
    for row in made(tmp_path / "train.parquet", config()):
        truth = row["reward_model"]["ground_truth"]
        for answer, score in ((truth, 1.0), (truth + "1", 0.0)):
            found = default_compute_score(
                row["data_source"], f"so it is\n#### {answer}", truth, row["extra_info"]
            )
            assert found == score


def test_verl_reads_prompts_with_tools_and_without(tmp_path: Path):
    rows = [pair(user(f"prompt {i}"), solution=["a", "b"][: 1 + i % 2]) for i in range(COUNT)]
    rows.append(pair(CALLED, tools=TOOLS, solution=["a"]))
    data = write(tmp_path / "data", rows, heldout=0.0)
    export(data, "verl", tmp_path / "train.parquet")
    dataset = made(tmp_path / "train.parquet", config())
    assert len(dataset) == COUNT + 1
    assert dataset[COUNT]["raw_prompt"] == CALLED
    assert [dataset[i]["reward_model"]["ground_truth"] for i in (0, 1)] == ["a", ["a", "b"]]


def test_verls_custom_data_set_draws_by_weight(data: Path, tmp_path: Path):
    """`data.custom_cls`, which all versions have."""
    export(data, "verl", tmp_path / "train.parquet", heldout=tmp_path / "heldout.parquet")
    path = str(block("density_dataset.py", tmp_path))
    settings = config(custom_cls={"path": path, "name": "DensityDataset"}, draws=500)
    dataset = made(tmp_path / "train.parquet", settings)
    weights = isodense.load_weights(data / "density")
    expected = isodense.draw(weights.weights, 500, seed=4)
    ids = [weights.prompt_ids[row].decode() for row in expected]
    assert [dataset[row]["extra_info"]["id"] for row in range(500)] == ids
    sampler = factories()[1](settings, dataset)
    assert list(sampler) == list(range(500))
    heldout = load_prompts(data / "prompts").split("heldout")
    assert len(made(tmp_path / "heldout.parquet", settings)) == len(heldout)


def test_verls_sampler_draws_by_weight(data: Path, tmp_path: Path):
    """`data.sampler`, which versions up to 0.7 have."""
    pytest.importorskip("verl.experimental.dataset.sampler")
    export(data, "verl", tmp_path / "train.parquet")
    path = str(block("density_sampler.py", tmp_path))
    settings = config(sampler={"class_path": path, "class_name": "DensitySampler"})
    dataset = made(tmp_path / "train.parquet", settings)
    sampler = factories()[1](settings, dataset)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=8, sampler=sampler, collate_fn=lambda rows: rows
    )
    weights = isodense.load_weights(data / "density")
    seen = [row["extra_info"]["id"] for _ in range(2) for batch in loader for row in batch]
    drawn = isodense.draw(weights.weights, 2 * len(dataset), seed=4)
    assert seen == [weights.prompt_ids[row].decode() for row in drawn]
    shares = np.array([row["extra_info"]["weight"] for row in dataset])
    np.testing.assert_allclose(shares, weights.weights, rtol=1e-6)
