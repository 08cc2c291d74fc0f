"""OpenRLHF's own data set on an export; run where OpenRLHF is installed.

docs/other-trainers.md has the commands that make an environment for it.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import isodense
from isodense.cli.export import Draws, export
from isodense.prompts.reader import load_prompts
from tests import tiny
from tests.cli.test_export import COUNT, write
from tests.prompts.test_deduplicate import pair
from tests.tiny import user

pytest.importorskip("openrlhf")


def test_openrlhf_reads_prompts_and_ground_truths(tmp_path: Path):
    from openrlhf.datasets.prompts_dataset import PromptDataset
    from openrlhf.datasets.utils import blending_datasets

    rows = [pair(user(f"prompt {i}"), answer=i, label=f"kind {i % 3}") for i in range(COUNT)]
    data = write(tmp_path / "data", rows)
    export(data, "openrlhf", tmp_path / "plan.jsonl", draws=Draws(50, seed=2))
    keys = {"input_key": "prompt", "label_key": "label", "apply_chat_template": True}
    strategy = SimpleNamespace(  # what the two read of OpenRLHF's strategy, which needs deepspeed
        args=SimpleNamespace(data=SimpleNamespace(**keys), use_ms=False),
        is_rank_0=lambda: True,
        print=lambda *_: None,
    )
    loaded = blending_datasets(str(tmp_path / "plan.jsonl"), None, strategy, dataset_split="train")
    found = PromptDataset(loaded, tiny.tokenizer(), strategy)
    weights = isodense.load_weights(data / "density")
    texts = load_prompts(data / "prompts").split("train").texts
    drawn = isodense.draw(weights.weights, 50, seed=2)
    assert len(found) == 50
    for place, row in enumerate(drawn):
        source, prompt, label, _ = found[place]
        assert f"<|im_start|>user\n{texts[row]}<|im_end|>" in prompt
        assert label == texts[row].split()[-1]
        assert source == "s"
