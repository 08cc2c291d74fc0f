"""`isodense.weigh` gives the weights that the stages give, a row for each row of any data."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

import isodense
from isodense.pipeline.errors import DataError, IsodenseError
from isodense.weighing.data import parts_of
from isodense.weighing.settings import DEFAULTS, settings
from isodense.weighing.weigh import cache_folder
from tests import tiny
from tests.project import PARAMS

SMALL = {"embeddings.max_tokens": 64, "map.epochs": 20}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny.encoder(tmp_path_factory.mktemp("model") / "encoder")


@pytest.fixture
def weigh(encoder, tmp_path, monkeypatch):
    """Give `isodense.weigh` with the tiny encoder and a cache that is empty."""
    monkeypatch.setenv("ISODENSE_CACHE", str(tmp_path / "cache"))

    def run(data, *column, params=None, **options):
        return isodense.weigh(data, *column, encoder=encoder, params=SMALL | (params or {}),
                              **options)  # fmt: skip

    return run


@pytest.fixture
def jsonl(tmp_path):
    def write(rows, name="prompts.jsonl"):
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


# --- the weights ----------------------------------------------------------------------------------


def test_the_weights_are_those_of_the_public_functions(weigh, encoder):
    texts = tiny.texts(80)
    found = weigh(texts, k=20)
    model = isodense.load_encoder(encoder, max_tokens=64, precision="float64")
    graph = isodense.knn_graph(model.encode(texts), k=50)
    np.testing.assert_array_equal(found.graph.indices, graph.indices)
    expected = isodense.density_weights(graph, k=20)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-12)
    assert found.weights.dtype == np.float64
    assert found.weights.std() > 1e-4  # the encoder tells them apart


def test_rows_of_one_prompt_share_its_weight_as_align_does(weigh, tmp_path):
    texts = tiny.texts(40)
    texts = [texts[7], *texts, texts[7], f"  {texts[3]}\n"]  # white space makes no other prompt
    found = weigh(texts, work=tmp_path / "work")
    stored = isodense.load_weights(tmp_path / "work" / "density")
    assert len(stored.weights) == 40
    np.testing.assert_allclose(found.weights, stored.align(found.ids), rtol=1e-6)
    same = [0, 8, 41]
    assert len({found.ids[row] for row in same}) == 1
    assert np.ptp(found.weights[same]) == 0
    once = dict(zip(stored.prompt_ids.tolist(), stored.weights.tolist(), strict=True))
    whole = once[found.ids[0].encode()]
    assert found.weights[same].sum() == pytest.approx(whole, rel=1e-6)
    assert found.ids[42] == found.ids[4]
    assert (found.facts["rows"], found.facts["prompts"]) == (43, 40)
    assert found.facts["repeated"] == 3
    assert "3 rows (7.0%) repeat an earlier prompt" in found.opinion
    assert found.rows.tolist() == list(range(43))


def test_the_coordinates_and_clusters_are_those_of_the_prompts(weigh):
    texts = tiny.texts(30)
    found = weigh([*texts, texts[5]], k=10)
    assert found.coordinates.shape == (31, 2)
    assert np.isfinite(found.coordinates).all()
    np.testing.assert_array_equal(found.coordinates[5], found.coordinates[30])
    assert found.clusters[5] == found.clusters[30]
    assert len(np.unique(found.coordinates, axis=0)) > 20


@pytest.mark.parametrize("texts", [["red"], ["red", "green"], ["red"] * 5, tiny.texts(3)])
def test_few_prompts(weigh, texts):
    found = weigh(texts)
    assert len(found) == len(texts)
    assert found.weights.sum() == pytest.approx(1)
    if len(set(texts)) == 1:
        np.testing.assert_allclose(found.weights, 1 / len(texts))
    assert found.opinion.startswith(f"{len(texts)} row")


def test_options_reach_the_density(weigh):
    texts = tiny.texts(60)
    gentle, steep = weigh(texts, ess=0.99), weigh(texts, ess=0.5)
    assert gentle.facts["ess"] > steep.facts["ess"] + 5
    uniform = weigh(texts, params={"density.method": "uniform"})
    np.testing.assert_allclose(uniform.weights, 1 / 60)
    many = weigh(texts, k=55)
    assert many.graph.k == 55  # the graph grows with k


def test_a_target_out_of_reach_is_said(weigh):
    texts = tiny.texts(60)
    assert "--ess" not in weigh(texts).opinion.splitlines()[2]  # reached, as can be seen
    bounded = weigh(texts, ess=0.1)
    assert bounded.facts["exponent"] == 1.25
    share = bounded.facts["target"]["reached"]
    said = f"The target of 10% (--ess) cannot be reached: it is {share:.0%} of 60 prompts, with the"
    assert said in bounded.opinion
    assert "density.alpha_max = 1.25" in bounded.opinion
    shared = weigh(texts, ess=0.99, params={"density.paraphrases": 0.9}).opinion
    assert "99% (--ess) cannot be reached" in shared
    assert "because paraphrases share their weights." in shared
    alike = weigh(texts[:2], ess=0.5).opinion
    assert "because all are equally crowded." in alike
    assert "cannot" not in weigh(texts, params={"density.method": "uniform"}).opinion
    with pytest.raises(IsodenseError, match=r"ess has no effect with density\.method uniform"):
        weigh(texts, ess=0.5, params={"density.method": "uniform"})


def test_a_target_of_distinct_prompts_is_said_where_copies_hide_that_it_is_reached(weigh):
    tail = " ".join(["egg"] * 70)  # longer than the encoder reads: one vector
    texts = [*tiny.texts(90), f"red {tail}", f"green {tail}", f"blue {tail}", f"cat {tail}"]
    found = weigh(texts, ess=1.0)
    assert found.facts["ess_share"] < 0.99
    said = "it is 100% of 91 prompts, near-duplicates taken as one, as --ess asks."
    assert f"Before kinds and counts enter {said}" in found.opinion
    assert found.facts["target"]["of"] == 91


def test_fewer_neighbours_than_asked_for_are_said(weigh):
    texts = tiny.texts(60)
    found = weigh(texts, k=200)
    assert found.opinion.startswith(
        "60 rows, 60 different prompts. There are 59 others to compare each with, not 200 (--k)."
    )
    assert found.facts["neighbors"] == {"asked": 200, "used": 59}
    assert "--k" not in weigh(texts, k=59).opinion
    assert "There is 1 other to compare each with, not 50" in weigh(texts[:2]).opinion
    assert "There are no others to compare each with, not 50" in weigh(texts[:1]).opinion
    with pytest.raises(IsodenseError, match=r"section density has 1 fault:\n  k: 2000 is above"):
        weigh(texts, k=2000)


def test_known_kinds_are_balanced_by_any_column(weigh):
    rows = [{"prompt": text, "topic": "ab"[i > 44]} for i, text in enumerate(tiny.texts(60))]
    plain = weigh(rows, label="topic")
    assert "Known labels are" in plain.opinion
    even = weigh(rows, params={"density.balance_by": "topic"})
    assert even.weights[:45].sum() == pytest.approx(0.5)
    assert plain.weights[:45].sum() > 0.6
    with pytest.raises(IsodenseError, match="one column for both"):
        weigh(rows, label="prompt", params={"density.balance_by": "topic"})
    with pytest.raises(DataError, match="no row has a column 'subject'"):
        weigh(rows, label="subject")


def test_a_label_that_names_no_kinds_is_a_column_like_others(weigh, caplog):
    rows = [{"prompt": text, "label": f"answer {i}"} for i, text in enumerate(tiny.texts(30))]
    found = weigh(rows)
    assert "labels" not in found.facts
    assert found.inputs["label"].to_pylist()[7] == "answer 7"
    assert "should name kinds" not in caplog.text
    weigh(rows, label="label")
    assert "label has 30 values for 30 prompts: it should name kinds" in caplog.text


def test_the_second_run_computes_nothing(weigh, monkeypatch):
    texts = tiny.texts(50)
    first = weigh(texts)
    fail = "isodense.embeddings.build.load_with"
    monkeypatch.setattr(fail, lambda *_: pytest.fail("the encoder is loaded"))
    monkeypatch.setattr("isodense.map.layout.layout", lambda *_: pytest.fail("laid out anew"))
    second = weigh(texts, ess=0.6)
    np.testing.assert_array_equal(first.coordinates, second.coordinates)
    assert not np.array_equal(first.weights, second.weights)
    left = list(Path(cache_folder()).glob("weigh*"))
    assert left == []


# --- any data -------------------------------------------------------------------------------------


def same(one, other):
    assert one.ids == other.ids
    np.testing.assert_array_equal(one.weights, other.weights)


def test_all_kinds_of_data_give_the_same(weigh, jsonl, tmp_path):
    texts = tiny.texts(25)
    rows = [{"problem": text, "answer": str(i)} for i, text in enumerate(texts)]
    expected = weigh(texts)
    path = jsonl(rows)
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "prompts.parquet")
    frame.to_csv(tmp_path / "prompts.csv", index=False)
    frame.to_json(tmp_path / "zipped.jsonl.gz", orient="records", lines=True)
    data = datasets.Dataset.from_list(rows)
    objects = (rows, data, datasets.DatasetDict(train=data), frame, pa.Table.from_pylist(rows))
    names = ("prompts.parquet", "prompts.csv", "zipped.jsonl.gz")
    for one in (path, str(path), *objects, *(tmp_path / name for name in names)):
        same(weigh(one), expected)
    chats = [tiny.user(text) for text in texts]
    same(weigh(chats), expected)
    messages = [{"messages": [*chat, {"role": "assistant", "content": "ok"}]} for chat in chats]
    same(weigh(messages), expected)
    same(weigh([{"text": "x", "q": {"body": text}} for text in texts], "q.body"), expected)


def test_a_data_set_of_the_hub(weigh, hub, jsonl, tmp_path):
    (tmp_path / "repo" / "data").mkdir(parents=True)
    rows = [{"body": text, "n": i} for i, text in enumerate(tiny.texts(20))]
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "repo" / "data" / "train-00000-of-00001.parquet")
    frame[:5].to_parquet(tmp_path / "repo" / "data" / "test-00000-of-00001.parquet")
    hub.add("team/problems", tmp_path / "repo")
    with pytest.raises(DataError, match=r"no known shape: body .str., n .int.") as error:
        weigh("team/problems")
    assert "--column body" in error.value.hint
    found = weigh("team/problems", "body")
    same(found, weigh(tiny.texts(20)))
    assert found.inputs["n"].to_pylist() == list(range(20))
    assert len(weigh("team/problems@main", "body", split="test")) == 5
    with pytest.raises(DataError, match=r"has no split 'dev'.*train") as error:
        weigh("team/problems", "body", split="dev")
    assert error.value.hint == "name one with --split"


def test_a_file_that_is_not_there_is_no_data_set(weigh, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data/prompts.jsonl: no such file") as error:
        weigh("data/prompts.jsonl")
    assert error.value.hint == "check the path"
    assert parts_of("data/p.jsonl.gz", "train", None)[0] == "p.jsonl.gz"
    assert parts_of("org/name", "train", None)[0] == "org/name"
    assert parts_of("hf://datasets/org/name@v1", "train", None)[0] == "org/name"


def test_what_is_nothing_to_weigh(weigh):
    with pytest.raises(DataError, match=r"data\[1\]: is int"):
        weigh(["red", 3])
    with pytest.raises(IsodenseError, match="object is nothing to weigh"):
        weigh(object())
    with pytest.raises(DataError, match="no split 'train'"):
        weigh({"test": ["red"]})
    with pytest.raises(DataError, match="data: has no rows"):
        weigh([])


def test_a_frame_may_hold_columns_of_several_types_and_none_twice(weigh):
    texts = tiny.texts(6)
    frame = pd.DataFrame({"prompt": texts, "mixed": [1, "a", None, 2.5, [1], np.nan], 7: range(6)})
    found = weigh(frame)
    assert found.inputs["mixed"].to_pylist() == ["1", '"a"', None, "2.5", "[1]", None]
    assert found.inputs["7"].to_pylist() == list(range(6))
    frame.columns = ["prompt", "a", "a"]
    with pytest.raises(DataError, match="the data: has two columns 'a'"):
        weigh(frame)
    twice = pa.Table.from_arrays([pa.array(texts)] * 2, names=["prompt", "prompt"])
    with pytest.raises(DataError, match="the data: has two columns 'prompt'"):
        weigh(twice)


def test_what_is_no_row_is_skipped_as_a_row_without_a_prompt_is(weigh):
    found = weigh(pd.Series(["red", np.nan, "green"]), on_bad_row="skip")
    assert found.rows.tolist() == [0, 2]
    found = weigh([3, "red", ("a",), "green"], on_bad_row="skip")
    assert (found.rows.tolist(), found.facts["skipped"]) == ([1, 3], 2)
    found = weigh([{"prompt": "red", 5: "a"}])
    assert found.inputs["5"].to_pylist() == ["a"]


@pytest.mark.parametrize("form", ["torch", "numpy", "pandas", "arrow"])
def test_the_format_of_a_data_set_changes_nothing(weigh, form):
    data = datasets.Dataset.from_dict({"prompt": tiny.texts(3), "v": [1, 2, 3], "w": [0] * 3})
    table = weigh(data.with_format(form, columns=["prompt", "v"])).inputs
    assert table.to_pydict() == {"prompt": tiny.texts(3), "v": [1, 2, 3]}


# --- columns and bad rows -------------------------------------------------------------------------


def test_an_unknown_column_is_an_error_that_names_those_there_are(weigh, jsonl):
    path = jsonl([{"body": "a long text of some kind", "title": "short"}] * 3)
    with pytest.raises(DataError, match=r"no known shape: body .str., title .str.") as error:
        weigh(path)
    assert error.value.hint == "name the column that holds the prompts, perhaps --column body"
    with pytest.raises(DataError, match="has no column 'boddy'; the columns are body, title"):
        weigh(path, "boddy")
    assert len(weigh(path, "title")) == 3


def test_a_bad_row_is_an_error_with_file_and_line_or_counted(weigh, jsonl):
    good = [{"prompt": text} for text in tiny.texts(6)]
    rows = [*good[:2], "{broken", {"prompt": "  "}, *good[2:4], {"prompt": 7}, *good[4:]]
    path = jsonl(rows)
    with pytest.raises(DataError, match=r"prompts.jsonl:3: ") as error:
        weigh(path)
    assert error.value.hint == "correct the row, or leave such rows out: --on-bad-row skip"
    found = weigh(path, on_bad_row="skip")
    assert found.rows.tolist() == [0, 1, 4, 5, 7, 8]
    assert found.facts["skipped"] == 3
    assert "3 rows without a prompt left out" in found.opinion
    with pytest.raises(DataError, match=r"data\[1\]: "):
        weigh(["red", " "])
    with pytest.raises(DataError, match="no prompt in 2 rows"):
        weigh(["", " "], on_bad_row="skip")
    with pytest.raises(DataError, match="surrogate"):
        weigh(["red", "\ud800"])


@pytest.mark.parametrize(
    "row", [{"label": "\ud800"}, {"n": "a\ud800"}, {"\ud800": 1}, {"n": [{"a": "\udc00"}]}]
)
def test_half_of_a_surrogate_pair_in_any_column_is_a_bad_row(weigh, row):
    rows = [{"prompt": "red"}, {"prompt": "green", **row}]
    with pytest.raises(DataError, match=r"data\[1\]: a text holds half of a surrogate pair"):
        weigh(rows)
    assert weigh(rows, on_bad_row="skip").rows.tolist() == [0]


def test_what_is_nested_too_deep_to_be_written_is_a_bad_row(weigh, jsonl):
    nested = '{"prompt": "red", "n": %s}'
    path = jsonl([nested % ("[" * 190 + "]" * 190), nested % ('{"a":' * 210 + "1" + "}" * 210)])
    with pytest.raises(DataError, match="2: a column is nested more than 200 deep"):
        weigh(path)
    found = weigh(path, on_bad_row="skip")
    assert found.rows.tolist() == [0]


def test_json_text_is_json_whatever_the_values_are(weigh):
    rows = [{"prompt": "red", "m": {(1, 2): 1, 3: np.float32("nan")}}, {"prompt": "green", "m": 1}]
    column = weigh(rows).inputs["m"].to_pylist()
    assert json.loads(column[0], parse_constant=pytest.fail) == {"(1, 2)": 1, "3": None}


def test_a_system_only_conversation_holds_no_text(weigh):
    rows = [{"prompt": [{"role": "system", "content": "Be brief."}, *tiny.user(" ")]}]
    with pytest.raises(DataError, match=r"data\[0\]: "):
        weigh(rows)


def test_columns_of_any_type_stay_and_give_way_to_ours(weigh, tmp_path):
    rows = [
        {
            "question": text,
            "prompt": "a template",
            "weight": i,
            "weight_": "taken",
            "mixed": i if i % 2 else str(i),
            "nested": {"a": i} if i % 3 else {},
            "label": 0.5,
            "tools": ["search"],
            "tags": ["x"] * (i % 3),
        }
        for i, text in enumerate(tiny.texts(12))
    ]
    found = weigh(rows, "question")
    table = found.table
    assert table.column_names[:8] == ["prompt_id", "row", "weight", "density", "cluster", "x", "y",
                                      "prompt"]  # fmt: skip
    assert table["prompt"].to_pylist()[3] == tiny.user(rows[3]["question"])
    assert table["prompt_"].to_pylist() == ["a template"] * 12
    assert table["weight__"].to_pylist() == list(range(12))
    assert table["weight_"].to_pylist() == ["taken"] * 12
    assert table["label"].to_pylist() == [0.5] * 12
    assert table["mixed"].to_pylist()[:2] == ['"0"', "1"]
    for name in ("w.parquet", "w.csv", "w.jsonl"):
        found.save(tmp_path / name)
    lines = [json.loads(line) for line in (tmp_path / "w.jsonl").read_text().splitlines()]
    assert [line["mixed"] for line in lines] == [row["mixed"] for row in rows]
    assert [line["tags"] for line in lines] == [row["tags"] for row in rows]
    assert [line["weight"] for line in lines] == found.weights.tolist()
    read = pd.read_csv(tmp_path / "w.csv")
    assert [json.loads(text) for text in read["tags"]] == [row["tags"] for row in rows]
    with pytest.raises(IsodenseError, match=r"ends in none of .parquet, .csv, .jsonl"):
        found.save(tmp_path / "w.xlsx")


def test_values_that_csv_has_no_way_of_writing_are_json_text(weigh, tmp_path):
    key = uuid.UUID(int=5)
    found = weigh([{"prompt": text, "b": b"\xff", "key": key} for text in tiny.texts(3)])
    for name in ("w.csv", "w.jsonl", "w.parquet"):
        found.save(tmp_path / name)
    frame = pd.read_csv(tmp_path / "w.csv")
    assert [json.loads(text) for text in frame["b"]] == ["b'\\xff'"] * 3
    assert [json.loads(text) for text in frame["key"]] == [str(key)] * 3
    assert pd.read_parquet(tmp_path / "w.parquet")["b"].tolist() == [b"\xff"] * 3


def test_a_column_has_one_name_in_all_rows_whichever_others_they_have(weigh):
    rows = [{"prompt": "red", "weight": 1, "weight_": "a"}, {"prompt": "green", "weight": 2},
            {"prompt": "blue", "weight_": "c"}]  # fmt: skip
    table = weigh(rows).inputs
    assert table["weight__"].to_pylist() == [1, 2, None]
    assert table["weight_"].to_pylist() == ["a", None, "c"]


def test_the_file_opens_in_pandas_datasets_and_duckdb(weigh, tmp_path):
    rows = [
        {"prompt": text, "n": i, "mixed": i if i % 2 else str(i), "parts": {"a": [i]}}
        for i, text in enumerate(tiny.texts(12))
    ]
    found = weigh(rows)
    path = tmp_path / "w.parquet"
    found.to_parquet(path)
    frame = pd.read_parquet(path)
    assert frame["prompt"].tolist() == [row["prompt"] for row in rows]
    assert frame["weight"].sum() == pytest.approx(1)
    data = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "hf")
    )
    assert data[5]["n"] == 5
    assert data[5]["parts"] == {"a": [5]}
    drawn = isodense.draw(data["weight"], 100, seed=1)
    assert set(drawn.tolist()) <= set(range(12))
    query = f"select row, weight, cluster, x, y, parts.a[1] from '{path}' order by row"  # noqa: S608
    answer = duckdb.sql(query).fetchall()
    assert [row[0] for row in answer] == list(range(12))
    assert [row[1] for row in answer] == found.weights.tolist()
    assert [row[5] for row in answer] == list(range(12))


def test_nothing_is_written_where_a_row_is_bad(weigh, jsonl, tmp_path):
    path = jsonl([{"prompt": "red"}, "{"])
    with pytest.raises(DataError):
        weigh(path, work=tmp_path / "work")
    assert not (tmp_path / "work" / "examples").exists()


# --- settings -------------------------------------------------------------------------------------


def test_the_defaults_are_those_that_params_yaml_ships():
    ours = yaml.safe_load(DEFAULTS.read_text())
    shipped = yaml.safe_load(PARAMS.read_text())
    assert len(ours) == 6
    assert ours.pop("models") == {"encoder": shipped["models"]["encoder"]}
    assert ours == {name: shipped[name] for name in ours}


def test_settings_are_changed_by_name_and_checked():
    assert settings({"embeddings.precision": "float32"}).embeddings.precision == "float32"
    assert settings({"density.k": 80}).neighbors.k_max == 80
    assert settings({"density.k": 5}).neighbors.k_max == 50
    assert settings({}, "org/model@v1").encoder.version == "v1"
    with pytest.raises(IsodenseError, match=r"no param density.eps \(did you mean density.ess\?\)"):
        settings({"density.eps": 1})
    with pytest.raises(IsodenseError, match="no param k"):
        settings({"k": 1})
    with pytest.raises(IsodenseError, match=r"section density has 1 fault:\n  ess: 3.0 is above"):
        settings({"density.ess": 3.0})
    with pytest.raises(IsodenseError, match="the encoder nowhere is no folder here"):
        settings({}, "nowhere")


def test_the_cache_is_the_users_where_there_is_no_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ISODENSE_CACHE", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / "isodense"
    (tmp_path / "dvc.yaml").touch()
    assert cache_folder() == Path(".cache/isodense")
    monkeypatch.setenv("ISODENSE_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")


def test_columns_that_change_type_after_many_rows():
    code = """
from isodense.weighing import columns
columns.CHUNK = 4
made = columns.Columns()
for i in range(12):
    made.add({"n": i if i < 6 else i + 0.5, "late": None if i < 9 else {"a": i},
              "odd": i if i < 8 else [i], "never": None})
table = made.table()
assert table["n"].to_pylist() == [0, 1, 2, 3, 4, 5, 6.5, 7.5, 8.5, 9.5, 10.5, 11.5]
assert table["late"].to_pylist()[8:10] == [None, {"a": 9}]
assert table["odd"].to_pylist()[7:9] == ["7", "[8]"]
assert str(table["never"].type) == "string"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
