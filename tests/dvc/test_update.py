"""``isodense update`` on a finished project: one command, one new shard, and what it says."""

from __future__ import annotations

import json
import re

import pytest

from isodense.prompts.conversations import prompt_id
from isodense.prompts.reader import load_prompts

RARE = "木曜日の朝 ⟨⟩ §§ 0x7f"


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    return finished.copy(tmp_path_factory.mktemp("mine"))


def write(path, prompts):
    rows = [{"prompt": text, "chosen": "Yes.", "rejected": "No"} for text in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def state(project):
    return [(project.root / name).read_bytes() for name in ("params.yaml", "dvc.lock")]


@pytest.fixture(scope="module")
def updated(project):
    """Take in three prompts, one of them asked already; return them and what was printed."""
    train = load_prompts(project.root / "data/prompts").split("train").rows
    single = [row for row in train if len(row["prompt"]) == 1]
    longest = max(single, key=lambda row: len(row["text"]))
    asked = single[0]
    (project.root / "own").mkdir()
    more = project.root / "own" / "more.jsonl"
    write(more, [longest["text"] + "!", asked["text"], RARE])
    lines = (project.root / "params.yaml").read_text().splitlines()
    output = project.run("isodense", "update", "own/more.jsonl", "--width", "300")
    return longest, asked, lines, output


@pytest.mark.slow
def test_new_prompts_are_taken_in_and_told_apart(project, updated):
    longest, asked, lines, output = updated
    assert project.ran(output) == ["download", "prompts", "embeddings", "neighbors", "density"]
    assert "1 of 4 shards computed" in output
    summary, _, _ = output.partition("Running stage")
    assert re.search(r"108 prompts before, 110 now: 2 new, 0 of them held out\n", summary)
    assert "new shards of embeddings: 1 of 4\n" in summary
    assert re.search(r"94 training prompts that were there, now over before\n  quantiles", summary)
    assert "new near-duplicates of prompts that were there: 1\n" in summary
    pair = rf"  {re.escape(longest['text'])}!\n +of  {re.escape(longest['text'])}\n"
    assert re.search(pair, summary)
    count = asked["count"]
    assert re.search(rf" {count} +{count + 1}  {re.escape(asked['text'])}\n", summary)
    rare = re.search(r"rare or garbage: have a look\n  weight .*\n +([\d.]+)  (.*)\n", summary)
    assert rare.group(2) == RARE
    assert float(rare.group(1)) > 1.5
    now = (project.root / "params.yaml").read_text().splitlines()
    assert [line for line in now if line not in lines] == [
        "    files: [own/more.jsonl]",
        "  - local",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("updated")
def test_with_nothing_new_it_compares_with_a_revision(project):
    output = project.run("isodense", "update", "--since", "HEAD")
    assert project.ran(output) == []
    assert "108 prompts before, 110 now: 2 new" in output
    assert "rank correlation" in output
    told = json.loads(project.out("isodense", "update", "--since", "HEAD", "--json"))
    assert (told["before"], told["now"], len(told["new"])) == (108, 110, 2)
    rarest = max(told["new"], key=lambda one: one["weight_over_mean"])
    assert rarest["id"] == prompt_id([{"role": "user", "content": RARE}])


def test_a_faulty_file_changes_nothing(project):
    before = state(project)
    (project.root / "bad.jsonl").write_text('{"quest": "?"}\n')
    for name, words in (("bad.jsonl", "of no known shape"), ("none.jsonl", "is not a file")):
        output = project.run("isodense", "update", name, check=False)
        assert words in output
        assert "Running stage" not in output
    assert state(project) == before


def test_when_dvc_fails_params_and_lock_are_as_before_and_the_data_comes_back(project):
    manifest = project.root / "data/examples/manifest.json"
    rows = json.loads(manifest.read_text())["rows"]
    project.set({"prompts.heldout": 5})  # which the prompts stage refuses
    before = state(project)
    write(project.root / "third.jsonl", ["one more question"])
    output = project.run("isodense", "update", "third.jsonl", check=False)
    assert project.ran(output)[0] == "download"
    assert "`dvc repro density` failed" in output
    assert "`dvc checkout`" in output
    assert state(project) == before
    assert json.loads(manifest.read_text())["rows"] == rows + 1
    project.run("dvc", "checkout")
    assert json.loads(manifest.read_text())["rows"] == rows
