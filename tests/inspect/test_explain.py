"""A prompt is explained by what the artifacts hold; a new text by what they would hold of it."""

from __future__ import annotations

import argparse
import datetime
import io
import json
import shutil
import sys
import unicodedata
from dataclasses import replace

import numpy as np
import pytest

from isodense.cli.commands import explain as command
from isodense.density.estimate import estimate, heldout_density, inverse_weights
from isodense.difficulty.artifact import publish, publish_empty
from isodense.difficulty.params import DifficultyParams
from isodense.embeddings.reader import load_vectors
from isodense.inspect.explain import Folders, explain
from isodense.inspect.query import nearest_to
from isodense.neighbors.graph import load_graph, load_heldout_graph
from isodense.pipeline.artifact import read_manifest, write_manifest
from isodense.pipeline.errors import IsodenseError
from isodense.prompts.conversations import prompt_id
from isodense.prompts.reader import load_prompts
from isodense.sampling.difficulty import load_difficulty
from isodense.sampling.schemes import prompt_weights
from isodense.sampling.weights import load_weights
from tests import tiny
from tests.artifacts import DENSITY, make, write_density
from tests.rl import SECTIONS
from tests.tables import tamper
from tests.tiny import WORDS, user

DIFFICULTY = DifficultyParams(**SECTIONS["difficulty"] | {"completions": 8})
TAIL = " ".join(WORDS * 3)  # longer than the encoder reads: texts that end in it have one vector
FIXED = ("format_version", "kind", "files")
HOSTILE = "\x1b[31mwhich\x9b2J colour \u202eis\u2066 the </script>\n\n\u2028密度 sky? "
DIALOGUE = [
    {"role": "user", "content": "Tell me a joke."},
    {"role": "assistant", "content": "A cat sat on a mouse."},
    {"role": "user", "content": "Another one, about paris."},
]
rng = np.random.default_rng(5)
TEXTS = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) + f" {i}" for i in range(90)]
COPIES = [f"{start} {TAIL}" for start in ("red", "green", "blue", "paris", "water", "cat")]


def conversations():
    asked = [user(text) for text in [*TEXTS, *TEXTS[:30:3], *COPIES, HOSTILE]]
    return [*asked, DIALOGUE]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny.encoder(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="module")
def data(tmp_path_factory, encoder):
    return make(tmp_path_factory.mktemp("whole") / "data", conversations(), encoder)


def folders(data, encoder=None):
    names = ("prompts", "neighbors", "density", "embeddings")
    return Folders(*(data / name for name in names), encoder or data / "none")


@pytest.fixture(scope="module")
def prompts(data):
    return load_prompts(data / "prompts")


def test_a_training_prompt_has_the_neighbours_that_lie_nearest(data, prompts):
    train = prompts.split("train")
    vectors = load_vectors(data / "embeddings", np.array(prompts.positions("train")))[0]
    weights = load_weights(data / "density")
    for row in (0, 7, len(train) - 1):
        found = explain(train.ids[row], folders(data), neighbors=6)
        distances = np.linalg.norm(vectors.astype(float) - vectors[row], axis=1)
        distances[row] = np.inf
        assert found["kind"] == "training"
        assert found["prompt"]["text"] == train.texts[row]
        nearest = [one["distance"] for one in found["neighbors"]]
        np.testing.assert_allclose(nearest, np.sort(distances)[:6], atol=1e-6)
        ids = [train.ids.index(one["id"]) for one in found["neighbors"]]
        np.testing.assert_allclose(distances[ids], nearest, atol=1e-6)
        cosines = [one["cosine"] for one in found["neighbors"]]
        np.testing.assert_allclose(cosines, vectors[ids] @ vectors[row], atol=1e-5)
        assert found["weight"]["over_mean"] == pytest.approx(weights.weights[row] * len(train))
        heavier = sum(other > weights.weights[row] for other in weights.weights)
        assert found["weight"]["rank"] == heavier + 1
        assert found["density"]["log_density"] == pytest.approx(weights.density[row])


def test_difficulty_is_shown_beside_the_weight_with_their_product(data, prompts, tmp_path):
    train, weights = prompts.split("train"), load_weights(data / "density").weights
    without = folders(data)
    assert explain(train.ids[0], without, neighbors=1)["difficulty"] is None
    publish_empty(tmp_path / "off")
    off = replace(without, difficulty=tmp_path / "off")
    assert explain(train.ids[0], off, neighbors=1)["difficulty"] is None
    solved = np.arange(len(train), dtype=np.int32) % 9
    made = np.full(len(train), 8, dtype=np.int32)
    publish(train, solved, made, DIFFICULTY, {}, tmp_path / "difficulty")
    measured = replace(without, difficulty=tmp_path / "difficulty")
    reports = [explain(name, measured, neighbors=1)["difficulty"] for name in train.ids[:9]]
    assert [one["solved"] for one in reports] == list(range(9))
    assert reports[4]["pass_rate"] == 0.5
    assert reports[4]["signal"] == 1 == max(one["signal"] for one in reports)
    assert reports[0]["signal"] == pytest.approx(0.36)
    expected = prompt_weights(
        train,
        load_weights(data / "density"),
        "density+difficulty",
        load_difficulty(tmp_path / "difficulty"),
    )
    for row, one in enumerate(reports):
        share = expected[row] / expected.astype(float).mean()
        assert one["product_over_mean"] == pytest.approx(share, rel=1e-5)
        over_mean = weights[row] * len(train)
        assert one["product_over_mean"] != pytest.approx(over_mean, rel=1e-3)
    heldout = prompts.split("heldout").ids[0]
    assert explain(heldout, measured, neighbors=1)["difficulty"] is None
    shown = command._difficulty_lines(reports[0])
    assert "solved 0 of 8 times before training: pass rate 0.10, smoothed, signal 0.36" in shown
    assert f"weight × signal: {reports[0]['product_over_mean']:.2f} times the mean" in shown


def test_draws_of_an_epoch_sum_to_the_epoch(data, prompts):
    train = prompts.split("train")
    reports = [explain(name, folders(data), neighbors=1) for name in train.ids]
    draws = [report["weight"]["draws_per_epoch"] for report in reports]
    assert sum(draws) == pytest.approx(len(train), rel=1e-5)
    for report in reports:  # what the density is said to come from is all of it
        why, counted = report["why"], report["density"]["distinct_prompts"]
        assert why["own_count"] == pytest.approx(1 + why["neighbors"] + why["beyond"], rel=1e-5)
        assert counted >= 1  # itself
        if not report["near_duplicates"]["number"]:
            assert why["own_count"] == pytest.approx(counted, rel=1e-4)


def test_near_copies_are_named_and_count_as_none(data, prompts):
    copies = [row for row in prompts.split("train").rows if row["text"] in COPIES]
    assert len(copies) > 2
    found = explain(copies[0]["id"], folders(data))
    assert found["near_duplicates"]["number"] == len(copies) - 1
    assert {one["text"] for one in found["near_duplicates"]["prompts"]} == {
        row["text"] for row in copies[1:]
    }
    near = [one for one in found["neighbors"] if one["near_duplicate"]]
    assert {one["text"] for one in near} == {row["text"] for row in copies[1:]}
    assert all(one["counts"] == 0 for one in near)
    assert sum(one["counts"] > 0 for one in found["neighbors"]) > 0


@pytest.mark.parametrize("changes", [{}, {"count_power": 0.5}, {"method": "uniform"}])
def test_what_is_stored_explains_as_a_new_estimate_would(data, encoder, tmp_path, changes):
    """Numbers that are read from the artifact are those of an estimate on the same graph."""
    mine = shutil.copytree(data, tmp_path / "data")
    write_density(mine, **changes)
    params = DENSITY.model_copy(update={**changes, "count_power": 0.0})
    graph = load_graph(mine / "neighbors")[0]
    found = estimate(graph, params)
    sizes, train = np.bincount(found.clusters), load_prompts(mine / "prompts").split("train")
    for row in range(0, len(train), 9):
        told = explain(train.ids[row], folders(mine), neighbors=1)
        assert told["near_duplicates"]["number"] == sizes[found.clusters[row]] - 1
        assert told["near_duplicates"]["radius"] == found.scales.radius
        assert told["density"]["log_density"] == np.float32(found.density[row])
    for text in ("a cat in paris", f"another start {TAIL}"):
        told = explain(text, folders(mine, encoder), neighbors=1)
        near = nearest_to(text, 12, *(mine / n for n in ("prompts", "embeddings")), encoder)
        density = heldout_density(found, near, params)[0]
        assert told["density"]["log_density"] == pytest.approx(density, rel=1e-7)
        size = 1 + told["near_duplicates"]["number"]
        plain = inverse_weights(np.append(found.density, density), found.exponent, np.append(
            sizes[found.clusters], size))  # fmt: skip
        factor = train.rows[0]["count"] ** changes.get("count_power", 0.0)
        first = load_weights(mine / "density").weights[0] * len(train) / factor
        assert told["weight"]["over_mean"] == pytest.approx(
            plain[-1] / plain[0] * first if "method" not in changes else 1, rel=1e-6
        )


def test_paraphrases_that_share_the_weight_are_told(data, encoder, prompts, tmp_path, capsys):
    mine = shutil.copytree(data, tmp_path / "data")
    write_density(mine, paraphrases=0.9)
    weights, train = load_weights(mine / "density"), prompts.split("train")
    row = int(weights.niches.argmax())
    told = explain(train.ids[row], folders(mine), neighbors=1)["paraphrases"]
    reach = 0.9 * weights.metadata["scale"]
    assert told == {"niche": pytest.approx(weights.niches[row]), "reach": pytest.approx(reach)}
    assert told["niche"] > 1.2
    shown = f"{told['niche']:.1f} prompts share one weight: itself, and others within {reach:.3f}"
    assert f"paraphrases {shown}" in run(capsys, mine, train.ids[row])
    heldout = explain(prompts.split("heldout").ids[0], folders(mine), neighbors=1)
    assert heldout["paraphrases"] is None
    assert explain(train.ids[row], folders(data), neighbors=1)["paraphrases"] is None
    assert "paraphrases" not in run(capsys, data, train.ids[row])
    write_density(mine, paraphrases=0.9, method="uniform")
    assert explain(train.ids[row], folders(mine), neighbors=1)["paraphrases"] is None


def test_a_new_text_shares_its_weight_with_its_paraphrases(without, encoder, tmp_path):
    less = shutil.copytree(without[0], tmp_path / "data")
    write_density(less, paraphrases=0.9)
    text = load_prompts(less / "prompts").split("train").rows[3]["text"] + " again"
    found = explain(text, folders(less, encoder), neighbors=1)
    niche = found["paraphrases"]["niche"]
    assert niche > 1
    weights, n = load_weights(less / "density"), len(load_prompts(less / "prompts").split("train"))
    shared = weights.weights.astype(float) * weights.niches * n  # what the density alone says
    alone = np.bincount(weights.clusters)[weights.clusters] == 1
    line = np.polyfit(weights.density[alone], np.log(shared[alone]), 1)
    expected = np.exp(np.polyval(line, found["density"]["log_density"]))
    size = 1 + found["near_duplicates"]["number"]
    assert found["weight"]["over_mean"] == pytest.approx(expected / niche / size, rel=1e-3)


def test_a_known_kind_is_told_with_its_share_of_the_draws(data, encoder, tmp_path, capsys):
    mine = shutil.copytree(data, tmp_path / "data")
    write_density(mine, balance_by="source", quotas={"test": 1.0})
    train = load_prompts(mine / "prompts").split("train")
    told = explain(train.ids[0], folders(mine), neighbors=1)["known_kind"]
    assert (told["by"], told["name"], told["prompts"]) == ("source", "test", len(train))
    assert told["uniform"] == 1
    assert told["weighted"] == pytest.approx(1, abs=1e-6)
    new = explain("a cat in paris", folders(mine, encoder), neighbors=1)
    assert (new["known_kind"], new["weight"]) == (None, None)  # its source is not known
    assert explain(train.ids[0], folders(data), neighbors=1)["known_kind"] is None


def test_a_heldout_prompt_is_never_drawn(data, prompts):
    heldout = prompts.split("heldout")
    near = load_heldout_graph(data / "neighbors")
    density = np.load(data / "density" / "heldout_density.npy")
    for row in (0, len(heldout) - 1):
        found = explain(heldout.texts[row], folders(data), neighbors=3)
        assert found["kind"] == "heldout"
        assert found["weight"] is None
        assert [one["distance"] for one in found["neighbors"]] == near.distances[row, :3].tolist()
        assert found["density"]["log_density"] == density[row]


@pytest.fixture(scope="module")
def without(tmp_path_factory, encoder, prompts):
    """Give the same set without a held-out prompt, and that prompt."""
    left_out = prompts.split("heldout").rows[1]
    kept = [one for one in conversations() if prompt_id(one) != left_out["id"]]
    return make(tmp_path_factory.mktemp("less") / "data", kept, encoder), left_out


def test_a_new_text_is_what_it_would_be_as_a_heldout_prompt(data, encoder, without):
    less, left_out = without
    whole = explain(left_out["id"], folders(data), neighbors=12)
    found = explain(left_out["text"], folders(less, encoder), neighbors=12)
    assert (whole["kind"], found["kind"]) == ("heldout", "new")
    assert found["prompt"]["id"] == left_out["id"]
    assert found["neighbors"] == whole["neighbors"]
    assert np.float32(found["density"]["log_density"]) == whole["density"]["log_density"]
    assert found["why"] == whole["why"]


def test_a_text_that_is_like_no_other_is_one_distinct_prompt(tmp_path, encoder):
    data = make(tmp_path / "data", conversations(), encoder)
    write_density(data, bandwidth=0.01)  # a kernel too narrow to reach anything
    found = explain("a cat in paris", folders(data, encoder))
    assert found["density"]["distinct_prompts"] == pytest.approx(1)
    assert found["density"]["log_density"] == pytest.approx(0)


def weight_at(data, prompts, density, count=1):
    """Return the weight over the mean at a density, by drawing a line through the prompts."""
    weights, train = load_weights(data / "density"), prompts.split("train")
    alone = [row for row, one in enumerate(train.rows)
             if one["text"] not in COPIES and one["count"] == count]  # fmt: skip
    order = np.argsort(weights.density[alone])
    known = np.log(weights.weights[alone] * len(train))
    return np.exp(np.interp(density, weights.density[alone][order], known[order]))


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_new_text_weighs_what_prompts_of_its_density_weigh(without, encoder, power, tmp_path):
    less = shutil.copytree(without[0], tmp_path / "data")
    write_density(less, count_power=power)
    found = explain(without[1]["text"], folders(less, encoder))
    expected = weight_at(less, load_prompts(less / "prompts"), found["density"]["log_density"])
    assert found["weight"]["over_mean"] == pytest.approx(expected, rel=1e-3)


def test_a_new_copy_would_share_the_weight_of_its_group(data, encoder, prompts):
    copies = [row for row in prompts.split("train").rows if row["text"] in COPIES]
    found = explain(f"another start {TAIL}", folders(data, encoder))
    known = explain(copies[0]["id"], folders(data))
    assert found["near_duplicates"]["number"] == len(copies)
    assert found["neighbors"][0]["distance"] == 0
    assert found["density"]["log_density"] == pytest.approx(known["density"]["log_density"])
    expected = known["weight"]["over_mean"] * len(copies) / (len(copies) + 1)
    assert found["weight"]["over_mean"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("method", "known"), [("uniform", True), ("knn", False)])
def test_the_weight_of_a_new_text_is_told_only_where_the_density_says_it(
    without, encoder, tmp_path, method, known, capsys
):
    less = shutil.copytree(without[0], tmp_path / "data")
    write_density(less, method=method)
    weight = explain("a cat in paris", folders(less, encoder))["weight"]
    assert (weight["over_mean"] == 1) if known else weight is None
    out = run(capsys, less, "a cat in paris", "--encoder", str(encoder))
    assert ("would be 1.00 times the mean" in out) == known
    assert ("not known" in out) != known


def test_a_text_of_the_set_is_its_prompt_however_it_is_spelt(data, prompts):
    row = prompts.split("train").rows[3]
    assert explain(f"  {row['text']}\n\n", folders(data))["prompt"]["id"] == row["id"]
    dialogue = prompt_id(DIALOGUE)
    text = next(row["text"] for row in prompts.rows if row["id"] == dialogue)
    for query in (json.dumps(DIALOGUE), text, dialogue):
        assert explain(query, folders(data))["prompt"]["id"] == dialogue


def test_an_id_is_found_by_its_start_and_ambiguity_is_told(tmp_path, encoder):
    data = make(tmp_path / "data", [user(f"{i} {text}") for text in TEXTS for i in range(12)],
                encoder)  # fmt: skip
    ids = load_prompts(data / "prompts").ids
    starts = [name[:4] for name in ids]
    numbered = [start for start in starts if any(c.isdigit() for c in start)]
    twice = [start for start in numbered if starts.count(start) > 1]
    once = next(start for start in numbered if starts.count(start) == 1)
    assert explain(once, folders(data), 1)["prompt"]["id"] == ids[starts.index(once)]
    assert twice  # of 1,000 ids, by the birthday problem
    with pytest.raises(IsodenseError, match="is the start of 2 ids") as error:
        explain(twice[0], folders(data))
    assert error.value.hint == "give more digits"
    with pytest.raises(IsodenseError, match="no prompt's id starts with") as error:
        explain("0123456789abcdef", folders(data))
    assert "--text" in error.value.hint


def test_the_beginning_of_one_prompts_text_is_that_prompt(tmp_path, encoder, capsys):
    texts = ["which is the  sky", "which is the sea today", "which is the sea", "Paris is red"]
    texts += [
        f"green {name} or blue" for name in ("cat", "dog", "egg", "mouse", "fox", "owl", "ox")
    ]
    data = make(tmp_path / "data", [user(text) for text in texts], encoder)
    where = folders(data, encoder)
    for query, text in (("Paris i", "Paris is red"), ("  which  is the sk", "which is the sky")):
        found = explain(query, where)
        assert (found["prompt"]["text"], found["beginning"]) == (text, True)
    whole = explain("which is the sea", where)  # exact, though another begins so
    assert (whole["prompt"]["text"], whole["beginning"]) == ("which is the sea", False)
    with pytest.raises(IsodenseError) as caught:
        explain("green", where)
    assert caught.value.message == (
        "7 prompts begin so: 'green cat or blue', 'green dog or blue', 'green egg or blue', "
        "'green mouse or blue', 'green fox or blue', …"
    )
    assert caught.value.hint == "give more of the text, or add --text if it is whole"
    for query, options in (("green", {"text": True}), ("is red", {}), ("paris", {})):
        found = explain(query, where, **options)
        assert (found["kind"], found["beginning"]) == ("new", False)
    assert run(capsys, data, "Paris i").startswith("The one prompt that begins with this text")
    assert "begins with" not in run(capsys, data, "Paris is red")


def test_what_looks_like_an_id_can_be_meant_as_a_text(data, encoder):
    assert explain("1984", folders(data, encoder), text=True)["prompt"]["text"] == "1984"
    assert explain("facade", folders(data, encoder))["kind"] == "new"
    listed = explain('["a", "list"]', folders(data, encoder))
    assert listed["prompt"]["text"] == '["a", "list"]'


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "no words"),
        (" \n ", "no words"),
        ("\udcff", "not UTF-8"),
        ('[{"role": "assistant", "content": "x"}]', "the assistant's"),
        ('[{"role": "user"}]', "role and a content"),
        ('[{"role": "system", "content": "x"}]', "no words|the system's"),
    ],
)
def test_a_query_that_means_nothing_is_refused(data, query, said):
    with pytest.raises(IsodenseError, match=said):
        explain(query, folders(data))


@pytest.mark.parametrize("missing", ["prompts", "neighbors", "density"])
def test_what_is_missing_is_named_with_what_to_pull(data, prompts, tmp_path, missing):
    copy = shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(copy / missing)
    with pytest.raises(IsodenseError) as error:
        explain(prompts.ids[0], folders(copy))
    assert f"dvc pull {missing}" in error.value.hint


def test_embeddings_and_encoder_are_wanted_for_new_texts_only(data, prompts, tmp_path, encoder):
    copy = shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(copy / "embeddings")
    assert explain(prompts.ids[0], folders(copy))["prompt"]["id"] == prompts.ids[0]
    with pytest.raises(IsodenseError) as error:
        explain("something new", folders(copy, encoder))
    assert "dvc pull embeddings" in error.value.hint
    with pytest.raises(IsodenseError) as error:
        explain("something new", folders(data))
    assert "dvc pull models" in error.value.hint
    other = tiny.encoder(tmp_path / "other", seed=1)
    with pytest.raises(IsodenseError, match="was not made by the model"):
        explain("something new", folders(data, other))


def test_weights_of_another_graph_or_other_prompts_are_refused(data, without, tmp_path, prompts):
    copy = shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(copy / "neighbors")
    shutil.copytree(without[0] / "neighbors", copy / "neighbors")
    with pytest.raises(IsodenseError, match="were not made from the graph"):
        explain(prompts.ids[0], folders(copy))
    other = shutil.copytree(data, tmp_path / "other")
    tamper(other / "prompts", lambda rows: rows[::-1])
    train = prompts.split("train")
    with pytest.raises(IsodenseError, match="is not where the weights have it"):
        explain(train.ids[-1], folders(other))


# --- the command ----------------------------------------------------------------------------------


def run(capsys, data, *words):
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    args = parser.parse_args(["explain", *words, "--data", str(data)])
    args.run(args)
    return capsys.readouterr().out


def test_columns_of_the_data_are_shown_and_printed_as_json(data, tmp_path, prompts, capsys):
    copy = shutil.copytree(data, tmp_path / "data")
    day = datetime.datetime(2026, 1, 2)
    columns = {"answer": "4 " * 100, "level": 3, "asked": day}
    tamper(copy / "prompts", lambda rows: [row | columns for row in rows])
    name = prompts.split("train").ids[0]
    out = run(capsys, copy, name, "--width", "60")
    assert "answer: 4 4 4" in out
    assert "level: 3" in " ".join(out.split())
    assert "4 " * 70 not in " ".join(out.split())
    report = json.loads(run(capsys, copy, name, "--json"))
    assert report["prompt"]["level"] == 3
    assert report["prompt"]["asked"] == "2026-01-02 00:00:00"


def test_the_text_shows_weight_density_copies_and_neighbours(data, prompts, capsys):
    row = next(row for row in prompts.split("train").rows if row["text"] in COPIES)
    out = run(capsys, data, row["id"], "--neighbors", "7", "--width", "30")
    assert out.startswith(f"training prompt {row['id']}, 1 occurrence (test 1)\n")
    for words in (
        "times the mean, rank ",
        "draws expected in an epoch of",
        "denser than ",
        "itself included; ",
        "1 for itself, ",
        "estimated to lie beyond",
        "near-duplicates, within",
        "share one weight",
    ):
        assert words in out
    assert len(out[out.index("nearest training prompts") :].splitlines()) == 8
    twice = next(row for row in prompts.split("train").rows if row["count"] == 2)
    assert "2 occurrences (test 2)" in run(capsys, data, twice["id"])
    heldout = prompts.split("heldout").ids[0]
    assert "never drawn" in run(capsys, data, heldout)


def test_json_holds_what_the_text_shows(data, prompts, capsys):
    name = prompts.split("train").ids[2]
    report = json.loads(run(capsys, data, name, "--json", "--neighbors", "3"))
    assert report == explain(name, folders(data), neighbors=3)
    assert len(report["neighbors"]) == 3


def test_a_hostile_prompt_does_nothing_to_the_terminal(data, capsys):
    name = prompt_id(user(HOSTILE))
    for words in ([name], [name, "--json"]):
        out = run(capsys, data, *words)
        assert "密度" in out or "\\u5bc6" in out
        assert all(c == "\n" or unicodedata.category(c)[0] != "C" for c in out)


def test_a_prompt_is_read_from_standard_input(data, prompts, capsys, monkeypatch):
    row = prompts.rows[4]
    for stream in (row["text"].encode() + b"\n", b"\xef\xbb\xbf" + row["text"].encode()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stream)))
        assert row["id"] in run(capsys, data, "-")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    with pytest.raises(IsodenseError, match="not UTF-8"):
        run(capsys, data, "-")


def test_weights_made_before_there_was_a_param_are_explained(data, encoder, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    folder = tmp_path / "data" / "density"
    manifest = read_manifest(folder, "density")
    fields = {name: value for name, value in manifest.items() if name not in FIXED}
    del fields["params"]["paraphrases"], fields["params"]["balance_by"]
    write_manifest(folder, "density", **fields)
    old, now = (explain("red green", folders(one, encoder)) for one in (folder.parent, data))
    assert old == now
    fields["params"]["paraphrase"] = 0.5
    write_manifest(folder, "density", **fields)
    with pytest.raises(IsodenseError, match=r"paraphrase: unknown key.*'paraphrases'"):
        explain("red green", folders(folder.parent, encoder))
