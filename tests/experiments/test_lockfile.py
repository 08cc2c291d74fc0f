"""A stage is stale when dvc.lock records other params, code or outputs than the revision holds."""

from __future__ import annotations

import hashlib

import yaml

from isodense.experiments.lockfile import Revision, stale_outputs

CODE = b"code of training\n"
STAGES = {
    "density": {
        "cmd": "python density",
        "deps": ["data/prompts"],
        "params": ["density.k"],
        "outs": [{"data/density": {"desc": "weights"}}],
        "metrics": [{"density.json": {"cache": False}}],
    },
    "train": {
        "cmd": "python train",
        "deps": ["train.py", "data/density"],
        "params": ["train.learning_rate", "train.lora"],
        "outs": ["models/grpo"],
        "metrics": [{"train.json": {"cache": False}}],
    },
    "evaluate": {
        "cmd": "python evaluate",
        "deps": ["models/grpo", "train.json"],
        "metrics": [{"evaluate.json": {"cache": False}}],
    },
}
PARAMS = "density: {k: 5}\ntrain: {learning_rate: 1e-05, lora: {r: 8}}\n"
LOCK = """
stages:
  density:
    cmd: python density
    deps: [{path: data/prompts, md5: p1.dir}]
    params: {params.yaml: {density.k: 5}}
    outs: [{path: data/density, md5: d1.dir}, {path: density.json, md5: m1}]
  train:
    cmd: python train
    deps: [{path: train.py, md5: CODE}, {path: data/density, md5: d1.dir}]
    params: {params.yaml: {train.learning_rate: 1e-05, train.lora: {r: 8}}}
    outs: [{path: models/grpo, md5: g1.dir}, {path: train.json, md5: m2}]
  evaluate:
    cmd: python evaluate
    deps: [{path: models/grpo, md5: g1.dir}, {path: train.json, md5: m2}]
    outs: [{path: evaluate.json, md5: m3}]
""".replace("CODE", hashlib.md5(CODE, usedforsecurity=False).hexdigest())
AFTER_DENSITY = {"models/grpo", "train.json", "evaluate.json"}


def stale(**changed):
    files = {
        "dvc.yaml": yaml.safe_dump({"stages": STAGES}),
        "dvc.lock": LOCK,
        "params.yaml": PARAMS,
        "train.py": CODE.decode(),
    } | {name.replace("__", "."): text for name, text in changed.items()}
    return stale_outputs(revision(files))


def revision(files):
    def inside(folder):
        return (path[len(folder) + 1 :] for path in files if path.startswith(f"{folder}/"))

    return Revision(lambda path: files[path].encode() if path in files else None, inside)


def test_what_ran_as_it_stands_is_not_stale():
    assert stale() == set()


def test_density_alone_leaves_what_follows_stale():
    lock = LOCK.replace("density.k: 5", "density.k: 9").replace(
        "outs: [{path: data/density, md5: d1.dir}", "outs: [{path: data/density, md5: d9.dir}"
    )
    assert lock.count("d9.dir") == 1
    assert stale(dvc__lock=lock, params__yaml=PARAMS.replace("k: 5", "k: 9")) == AFTER_DENSITY


def test_another_param_code_or_command_makes_its_stage_stale_and_what_follows():
    everything = AFTER_DENSITY | {"data/density", "density.json"}
    assert stale(params__yaml=PARAMS.replace("k: 5", "k: 6")) == everything
    assert stale(params__yaml=PARAMS.replace("r: 8", "r: 9")) == AFTER_DENSITY
    assert stale(train__py="edited\n") == AFTER_DENSITY
    assert stale(dvc__lock=LOCK.replace("python train", "python train --old")) == AFTER_DENSITY
    assert stale(dvc__lock=LOCK.replace("{path: train.py", "{path: old.py")) == AFTER_DENSITY


def test_a_stage_that_never_ran_is_stale():
    assert stale(dvc__lock=LOCK[: LOCK.index("  evaluate:")]) == {"evaluate.json"}
    assert stale(dvc__lock="") == AFTER_DENSITY | {"data/density", "density.json"}


def test_a_folder_of_code_is_compared_as_dvc_hashes_it():
    # The hash is what `dvc repro` wrote for these three files with this .dvcignore.
    md5 = "6acc6d0fe4d8af2c2d73e4f1e0b4fe44.dir"
    stages = {"train": {"cmd": "train", "deps": ["src/train", "data/raw"], "outs": ["models/grpo"]}}
    deps = [{"path": "src/train", "md5": md5}, {"path": "data/raw", "md5": "0.dir"}]
    lock = {"cmd": "train", "deps": deps, "outs": [{"path": "models/grpo"}]}
    files = {
        "dvc.yaml": yaml.safe_dump({"stages": stages}),
        "dvc.lock": yaml.safe_dump({"stages": {"train": lock}}),
        ".dvcignore": "__pycache__\n/src/*/reader.py\n",
        "src/train/a_b/c.py": "c",
        "src/train/a/z.py": "z",
        "src/train/b.py": "b",
        "src/train/reader.py": "ignored",
        "src/train/__pycache__/b.pyc": "ignored",
    }
    assert stale_outputs(revision(files)) == set()
    assert stale_outputs(revision(files | {"src/train/b.py": "c"})) == {"models/grpo"}
    assert stale_outputs(revision(files | {"src/train/d.py": ""})) == {"models/grpo"}
    assert stale_outputs(revision(files | {"src/train/reader.py": "edited"})) == set()
