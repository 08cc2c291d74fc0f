"""The table of default paths is what ``dvc.yaml`` says."""

from __future__ import annotations

from pathlib import Path

import yaml

from isodense.pipeline.layout import (
    ARTIFACTS,
    COMPLETIONS,
    DECILES,
    METRICS,
    PAGE,
    REALISED,
    SERIES,
)

STAGES = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]


def paths(stage, kind):
    return {item if isinstance(item, str) else next(iter(item)) for item in stage.get(kind, [])}


def test_every_artifact_is_an_output_of_its_stage_and_the_other_way_round():
    outputs = {(name, path) for name, stage in STAGES.items() for path in paths(stage, "outs")}
    folders = {one for one in outputs if one[1].startswith(("data/", "models/"))}
    assert {(one.stage, one.path.as_posix()) for one in ARTIFACTS.values()} == folders
    others = {"train": SERIES, "evaluate": DECILES, "report": PAGE}
    assert {(name, path.as_posix()) for name, path in others.items()} < outputs
    assert ("evaluate", COMPLETIONS.as_posix()) in outputs
    assert ("train", REALISED.as_posix()) in outputs


def test_metrics_are_those_of_the_stages():
    assert {name: {path.as_posix()} for name, path in METRICS.items()} == {
        name: paths(stage, "metrics") for name, stage in STAGES.items() if "metrics" in stage
    }
