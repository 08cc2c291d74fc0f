"""`isodense inspect` lists both ends and near-duplicates, and stays a table for any prompt."""

from __future__ import annotations

import argparse
import json
import shutil
import unicodedata

import numpy as np
import pytest
from rich.cells import cell_len

from isodense.cli.commands import inspect as command
from isodense.cli.main import main
from isodense.density.balance import effective_sample_size
from isodense.density.opinion import sentences
from isodense.inspect.overview import overview
from isodense.pipeline.errors import IsodenseError
from isodense.prompts.reader import load_prompts
from isodense.sampling.weights import load_weights
from tests import tiny
from tests.artifacts import make, write_density
from tests.inspect.test_explain import COPIES, HOSTILE, conversations
from tests.tiny import user


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny.encoder(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="module")
def data(tmp_path_factory, encoder):
    return make(tmp_path_factory.mktemp("set") / "data", conversations(), encoder)


def looked(data, top=10):
    return overview(data / "prompts", data / "density", top)


def run(capsys, data, *words):
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    flags = [f"--{name}={data / name}" for name in ("density", "prompts")]
    args = parser.parse_args(["inspect", *words, *flags])
    args.run(args)
    return capsys.readouterr().out


def test_one_folder_names_all_artifacts(data, capsys):
    expected = run(capsys, data, "--json")
    assert main(["inspect", "--data", str(data), "--json"]) == 0
    assert capsys.readouterr().out == expected


def test_both_ends_are_the_largest_and_smallest_weights(data):
    weights, train = load_weights(data / "density"), load_prompts(data / "prompts").split("train")
    relative = dict(zip(train.ids, weights.weights * len(train), strict=True))
    by_weight = sorted(relative.values())
    found = looked(data, top=5)
    assert found["prompts"] == len(train)
    assert found["ess"] == pytest.approx(effective_sample_size(weights.weights))
    assert found["exponent"] == weights.metadata["exponent"]
    for end, expected in (("most", by_weight[:-6:-1]), ("least", by_weight[:5])):
        shown = [one["weight_over_mean"] for one in found[end]]
        np.testing.assert_allclose(shown, expected, rtol=1e-6)
        for one in found[end]:
            row = train.rows[train.ids.index(one["id"])]
            assert one["weight_over_mean"] == pytest.approx(relative[one["id"]])
            assert (one["text"], one["count"]) == (row["text"], row["count"])


def test_the_histogram_counts_every_prompt_once(data):
    found, weights = looked(data), load_weights(data / "density")
    relative = weights.weights.astype(float) * len(weights.weights)
    assert sum(found["histogram"]) == len(relative)
    assert sum(found["histogram"][:4]) == (relative < 1).sum()
    assert found["min_over_mean"] == relative.min()
    assert found["max_over_mean"] == relative.max()


def test_the_largest_group_of_near_copies_comes_first(data):
    train, weights = load_prompts(data / "prompts").split("train"), load_weights(data / "density")
    copies = [row for row, one in enumerate(train.rows) if one["text"] in COPIES]
    largest = looked(data)["near_duplicates"]["largest"][0]
    assert largest["size"] == len(copies)
    assert largest["text"] in COPIES
    expected = weights.weights[copies].sum() * len(train)
    assert largest["weights"] == pytest.approx(expected, rel=1e-5)
    sizes = [one["size"] for one in looked(data)["near_duplicates"]["largest"]]
    assert sizes == sorted(sizes, reverse=True)
    assert looked(data)["near_duplicates"]["prompts"] >= len(copies)


def test_the_opinion_is_that_of_the_weights_at_hand(data, tmp_path, capsys):
    opinion = load_weights(data / "density").metadata["opinion"]
    said = sentences(opinion)
    assert looked(data)["opinion"] == said
    assert said
    assert run(capsys, data).split("\n")[3 : 3 + len(said)] == said
    copy = shutil.copytree(data, tmp_path / "data")
    write_density(copy, ess=0.3)
    assert load_weights(copy / "density").metadata["opinion"] != opinion
    assert looked(copy)["opinion"] != said
    write_density(copy, method="uniform")
    assert looked(copy)["opinion"] == []


def test_outside_a_project_the_opinion_names_the_options_of_weigh(data, tmp_path, monkeypatch):
    opinion = load_weights(data / "density").metadata["opinion"]
    monkeypatch.chdir(tmp_path)
    assert looked(data)["opinion"] == sentences(opinion, standalone=True)
    (tmp_path / "dvc.yaml").touch()
    assert looked(data)["opinion"] == sentences(opinion)


def test_the_graph_is_not_needed(data, tmp_path, capsys):
    copy = shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(copy / "neighbors")
    assert looked(copy) == looked(data)
    assert "duplicate clusters, the largest" in run(capsys, copy)
    shutil.rmtree(copy / "density")
    with pytest.raises(IsodenseError) as error:
        run(capsys, copy)
    assert "dvc pull density" in error.value.hint


def test_weights_of_other_prompts_are_refused(data, encoder, tmp_path):
    other = make(tmp_path / "data", conversations()[:-3], encoder)
    with pytest.raises(IsodenseError, match="belong to other prompts"):
        overview(other / "prompts", data / "density", 3)


def test_the_table_has_a_line_for_each_and_fits_its_width(data, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")
    out = run(capsys, data, "--top", "3")
    n = len(load_weights(data / "density").weights)
    assert out.startswith(f"{n} training prompts, effective sample size ")
    assert (
        out.index("most weighted")
        < out.index("least weighted")
        < out.index("duplicate clusters, the")
    )
    tables = out[out.index("most weighted") :].split("\n\n")
    assert [len(part.strip().splitlines()) for part in tables][:2] == [5, 5]
    assert all(cell_len(line) <= 72 for part in tables for line in part.splitlines())
    narrow = run(capsys, data, "--top", "3", "--width", "20")
    assert max(map(cell_len, narrow.split("most weighted")[1].splitlines())) < 72


def test_hostile_and_wide_prompts_keep_the_cell_len(encoder, tmp_path, capsys):
    texts = [HOSTILE, "密度" * 80, "e" + "\u0301" * 500, "plain", "\u202eright to left", "last one"]
    data = make(
        tmp_path / "data", [user(f"{text} {i}") for text in texts for i in range(6)], encoder
    )
    out = run(capsys, data, "--top", "50", "--width", "30")
    assert all(c == "\n" or unicodedata.category(c)[0] != "C" for c in out)
    train = load_prompts(data / "prompts").split("train")
    lines = out.split("most weighted\n")[1].split("\n\n")[0].splitlines()
    assert len(lines) == len(train) + 1
    start = lines[0].index("prompt")
    by_id = {name[:8]: text for name, text in zip(train.ids, train.texts, strict=True)}
    for line in lines[1:]:
        assert line[start - 2 : start] == "  "
        text = by_id[line[start - 10 : start - 2]]
        assert line[start] == next(c for c in text if c.isprintable() and c != " ")
        assert cell_len(line) <= start + 30


def test_json_is_what_the_table_shows(data, capsys):
    assert json.loads(run(capsys, data, "--json", "--top", "2")) == looked(data, 2)


def test_a_set_of_one_prompt_and_one_without_copies(encoder, tmp_path, capsys):
    one = make(tmp_path / "one" / "data", [user("alone")], encoder)
    assert run(capsys, one).startswith("1 training prompts, effective sample size 1 (100%)")
    write_density(one, method="uniform")
    assert looked(one)["near_duplicates"]["largest"] == []
    assert "\n  none\n" in run(capsys, one)
