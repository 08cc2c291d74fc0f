from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from isodense.download.collect import publish
from isodense.download.examples import (
    example_id,
    fault,
    iter_examples,
    kept_columns,
    load_pairs,
)
from isodense.download.params import DownloadParams
from isodense.pipeline import params as params_module
from isodense.pipeline.artifact import ids_sha256, read_manifest, verify_files
from isodense.pipeline.errors import DataError, ParamsError
from isodense.prompts.deduplicate import unique_prompts
from tests.download.sources import test_hh
from tests.hub import Hub

SRC = Path(__file__).parents[2] / "src"
SECTION = {
    "sources": ["sample"],
    "on_bad_row": "error",
    "max_skipped": 0.1,
    "sample": {
        "pairs": 80,
        "exponent": 1.0,
        "duplicates": 0.1,
        "near_duplicates": 0.1,
        "multi_turn": 0.1,
    },
    "skills": {
        "requests": 80,
        "exponent": 1.0,
        "duplicates": 0.1,
        "near_duplicates": 0.1,
        "heldout": 1,
    },
    "hh": {"revision": "main", "subsets": ["harmless-base"], "split": "train", "limit": None},
    "ultrafeedback": {"revision": "main", "split": "train_prefs", "limit": None},
    "stack_exchange": {
        "revision": "main",
        "sites": ["math.stackexchange.com"],
        "pairs_per_question": 1,
        "limit": None,
    },
    "hub": {
        "repo": None,
        "revision": None,
        "config": None,
        "split": "train",
        "files": None,
        "columns": {},
        "limit": None,
    },
    "local": {"files": [], "heldout": [], "columns": {}, "limit": None},
}


def section(folder: Path, **changes: object) -> DownloadParams:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({"download": SECTION | changes}))
    return params_module.load(path, "download", DownloadParams)


def strings(folder: Path, rows: list[dict], name: str = "pairs.jsonl") -> dict:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"files": [str(folder / name)], "heldout": [], "columns": {}, "limit": None}


def rng_for(source: str) -> np.random.Generator:
    return np.random.default_rng(len(source))


def row(prompt: str, **more: object) -> dict:
    return {"prompt": prompt, "chosen": "yes", "rejected": "no", **more}


def test_publishes_all_sources_in_order_with_ids_and_counts(tmp_path: Path):
    files = strings(tmp_path, [row("a"), row("b", label="letters")])
    params = section(tmp_path, sources=["local", "sample"], local=files)
    metrics = publish(params, rng_for, tmp_path / "out")["download"]
    rows = list(iter_examples(tmp_path / "out"))
    assert [entry["source"] for entry in rows[:3]] == ["local", "local", "sample"]
    assert list(rows[1]) == ["id", "prompt", "chosen", "rejected", "source", "label"]
    assert all(fault(entry) is None and entry["id"] == example_id(entry) for entry in rows)
    assert metrics["sources"] == {"local": 2, "sample": len(rows) - 2}
    assert metrics["pairs"] == metrics["examples"] == len(rows) == 82


def test_the_manifest_describes_the_examples_and_only_the_sources_in_use(tmp_path: Path):
    publish(section(tmp_path, on_bad_row="skip"), rng_for, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out", "download")
    verify_files(tmp_path / "out", manifest)
    rows = list(iter_examples(tmp_path / "out"))
    assert manifest["rows"] == len(rows)
    assert manifest["ids_sha256"] == ids_sha256(row["id"] for row in rows)
    used = {name: SECTION[name] for name in ("sources", "max_skipped", "sample")}
    assert manifest["params"] == used | {"on_bad_row": "skip"}


def test_no_path_of_the_machine_gets_into_the_artifact(tmp_path: Path):
    params = section(tmp_path, sources=["local"], local=strings(tmp_path, [row("a")]))
    publish(params, rng_for, tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()
    assert read_manifest(tmp_path / "out", "download")["params"]["local"]["files"] == [
        "pairs.jsonl"
    ]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path):
    params = section(tmp_path, sources=["sample", "local"], local=strings(tmp_path, [row("a")]))
    metrics = [publish(params, rng_for, tmp_path / name) for name in ("one", "two")]
    assert metrics[0] == metrics[1]
    for name in ("shard-00000.parquet", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_source_does_not_change_when_another_comes_first(tmp_path: Path):
    files = strings(tmp_path, [row("a")])
    publish(section(tmp_path), rng_for, tmp_path / "alone")
    both = section(tmp_path, sources=["local", "sample"], local=files)
    asked = []
    publish(both, lambda name: asked.append(name) or rng_for(name), tmp_path / "both")
    assert asked == ["sample"]
    drawn = [pair for pair in load_pairs(tmp_path / "both") if pair["source"] == "sample"]
    assert drawn == load_pairs(tmp_path / "alone")


def test_identical_rows_stay_and_are_counted_and_pairs_come_once(tmp_path: Path):
    rows = [row("a"), row("b"), row("a", label="again"), row("a", rejected="never")]
    params = section(tmp_path, sources=["local"], local=strings(tmp_path, rows))
    metrics = publish(params, rng_for, tmp_path / "out")["download"]
    assert (metrics["examples"], metrics["pairs"], metrics["repeated"]) == (4, 4, 1)
    prompts = [pair["prompt"][0]["content"] for pair in load_pairs(tmp_path / "out")]
    assert prompts == ["a", "b", "a"]


def test_bad_rows_stop_the_stage_or_are_counted(tmp_path: Path, caplog):
    rows = [row("a"), *[row("x", rejected="") for _ in range(8)], row("b")]
    files = strings(tmp_path, rows)
    with pytest.raises(DataError, match=r"pairs\.jsonl:2:"):
        publish(section(tmp_path, sources=["local"], local=files), rng_for, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.WARNING):
        changes = {"sources": ["local"], "local": files, "on_bad_row": "skip"}
        many = section(tmp_path, **changes, max_skipped=0.8)
        metrics = publish(many, rng_for, tmp_path / "out")["download"]
    assert (metrics["examples"], metrics["bad_rows"]) == (2, 8)
    assert 1 <= sum("skipped" in message for message in caplog.messages) < 8
    few = section(tmp_path, **changes, max_skipped=0.79)
    with pytest.raises(DataError, match=r"8 bad rows of 10 were skipped \(80\.0%\)"):
        publish(few, rng_for, tmp_path / "few")
    assert not (tmp_path / "few").exists()


def test_unusable_rows_are_counted_and_never_stop_the_stage(tmp_path: Path, hub: Hub):
    rows = [test_hh.row("a"), test_hh.row("b", "same", "same"), test_hh.row("c")]
    folder = test_hh.repository(tmp_path / "repo", {test_hh.TRAIN: rows})
    hub.add(test_hh.hh.REPO, folder, revision=test_hh.REVISION)
    metrics = publish(section(tmp_path, sources=["hh"]), rng_for, tmp_path / "out")["download"]
    assert (metrics["examples"], metrics["unusable_rows"], metrics["bad_rows"]) == (2, 1, 0)


def test_rows_without_a_use_are_counted_by_why(tmp_path: Path):
    rows = [row("a"), row(" "), row("b", chosen="same", rejected="same"), row("")]
    params = section(tmp_path, sources=["local"], local=strings(tmp_path, rows))
    metrics = publish(params, rng_for, tmp_path / "out")["download"]
    assert metrics["unusable"] == {"no user text": 2, "equal answers": 1}
    assert (metrics["examples"], metrics["unusable_rows"], metrics["bad_rows"]) == (1, 3, 0)


def test_a_column_of_two_types_is_named_with_file_and_line(tmp_path: Path):
    rows = [row("a", level=1), row("b", level=2.5), row("c", level="high"), row("d", level=3)]
    files = strings(tmp_path, rows)
    with pytest.raises(DataError, match=r"pairs\.jsonl:3: column level "):
        publish(section(tmp_path, sources=["local"], local=files), rng_for, tmp_path / "out")
    skip = section(tmp_path, sources=["local"], local=files, on_bad_row="skip", max_skipped=0.3)
    metrics = publish(skip, rng_for, tmp_path / "out")["download"]
    assert (metrics["examples"], metrics["pairs"], metrics["bad_rows"]) == (3, 3, 1)
    assert [entry["level"] for entry in iter_examples(tmp_path / "out")] == [1.0, 2.5, 3.0]


def test_a_test_set_is_held_out_of_training(tmp_path: Path):
    both = [strings(tmp_path, [row(text) for text in texts], f"{texts}.jsonl")["files"]
            for texts in ("abc", "de")]  # fmt: skip
    local = {"files": both[0], "heldout": both[1], "columns": {}, "limit": None}
    params = section(tmp_path, sources=["local"], local=local)
    publish(params, rng_for, tmp_path / "out")
    found = unique_prompts(list(iter_examples(tmp_path / "out")), 0.0)
    assert [one["split"] for one in found.rows] == ["heldout"] * 2 + ["train"] * 3
    assert kept_columns(tmp_path / "out") == []
    names = [Path(file).name for file in both[1]]
    assert read_manifest(tmp_path / "out", "download")["params"]["local"]["heldout"] == names


def test_half_of_a_surrogate_pair_is_a_bad_row_in_any_format(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([row("a"), row("b", note="\ud800")]))
    local = {"files": [str(path)], "heldout": [], "columns": {}, "limit": None}
    with pytest.raises(DataError, match=r"a\.json:1: a text holds half of a surrogate pair"):
        publish(section(tmp_path, sources=["local"], local=local), rng_for, tmp_path / "out")


def test_a_failure_keeps_the_artifact_that_was_there(tmp_path: Path):
    publish(section(tmp_path), rng_for, tmp_path / "out")
    before = (tmp_path / "out/shard-00000.parquet").read_bytes()
    files = {"files": [str(tmp_path / "absent.jsonl")], "heldout": [], "columns": {}, "limit": None}
    with pytest.raises(DataError, match="no such file"):
        publish(
            section(tmp_path, sources=["sample", "local"], local=files), rng_for, tmp_path / "out"
        )
    assert (tmp_path / "out/shard-00000.parquet").read_bytes() == before
    read_manifest(tmp_path / "out", "download")


def test_no_valid_examples_is_an_error_that_says_what_to_do(tmp_path: Path):
    files = strings(tmp_path, [row("", rejected=""), row(" ", chosen="")])
    params = section(tmp_path, sources=["local"], local=files, on_bad_row="skip")
    with pytest.raises(DataError, match=r"no valid examples \(2 bad rows[\s\S]*on_bad_row: error"):
        publish(params, rng_for, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sources": []}, "sources: [] is below the minimum"),
        ({"sources": ["sample", "sample"]}, "sources names 'sample' 2 times"),
        ({"sources": ["samples"]}, "sources[0]: 'samples' is not one of 'sample'"),
        ({"sources": ["local"]}, "list your files there"),
        (
            {"local": SECTION["local"] | {"files": ["a.jsonl"], "heldout": ["a.jsonl"]}},
            "local.heldout names 'a.jsonl', and so does local.files",
        ),
        ({"sources": ["hub"]}, "hub.repo is null: set it, as to openai/gsm8k"),
        ({"sources": ["hub"], "hub": SECTION["hub"] | {"repo": "a/b"}}, "hub.revision is null"),
        ({"on_bad_row": "ignore"}, "'ignore' is not one of"),
        ({"hh": SECTION["hh"] | {"subsets": ["red-team-attempts"]}}, "red-team-attempts"),
        ({"hh": SECTION["hh"] | {"limit": 0}}, "limit: 0 is below the minimum, 1"),
        ({"ultrafeedback": {}}, "ultrafeedback.revision: missing"),
    ],
)
def test_faults_of_the_section_are_named(tmp_path: Path, change: dict, words: str):
    with pytest.raises(ParamsError) as caught:
        section(tmp_path, **change)
    assert words in str(caught.value)


def test_importing_the_stage_imports_none_of_the_heavy_libraries():
    heavy = {"datasets", "huggingface_hub", "pyarrow", "torch"}
    code = f"import sys; import isodense.download.collect; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()", done.stderr


def test_datasets_and_trl_load_the_table_as_it_is(tmp_path: Path):
    import datasets
    from trl import is_conversational

    rows = [row(f"prompt {number}", level=number) for number in range(40)]
    rows += [row("labelled", label="late"), row("labelled again", label="late")]
    params = section(tmp_path, sources=["local"], local=strings(tmp_path, rows))
    publish(params, rng_for, tmp_path / "out")
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "out/*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(loaded) == 42
    assert loaded[0]["prompt"] == [{"role": "user", "content": rows[0]["prompt"]}]
    assert [label for label in loaded["label"] if label] == ["late", "late"]
    assert is_conversational(loaded[0])
    assert "label" not in load_pairs(tmp_path / "out")[0]
