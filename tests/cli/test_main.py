"""The command line shows and checks what the stages wrote."""

from __future__ import annotations

import json
import re
from itertools import chain

import numpy as np
import pytest

from isodense.cli.main import main, parser
from isodense.embeddings.build import embed
from isodense.embeddings.reader import load_vectors, read_shard_ids
from isodense.pipeline.artifact import read_manifest, write_manifest
from isodense.prompts.reader import load_prompts
from isodense.sampling.draw import draw
from tests import tiny
from tests.embeddings.test_build import PARAMS
from tests.prompts.test_deduplicate import pair
from tests.tables import publish_prompts
from tests.tiny import user
from tests.weights import write_weights


def rising_weights(train, folder):
    """Publish weights that rise with the row."""
    write_weights(folder, train.ids, np.arange(1, len(train) + 1))


@pytest.fixture
def flags(tmp_path):
    publish_prompts([pair(user(f"prompt {i}")) for i in range(30)], tmp_path / "p", 0.1)
    train = load_prompts(tmp_path / "p").split("train")
    rising_weights(train, tmp_path / "d")
    return ["--density", str(tmp_path / "d"), "--prompts", str(tmp_path / "p")], train


def test_verify_names_a_damaged_file(flags, capsys):
    folder = flags[0][1]
    assert main(["verify", folder]) == 0
    assert "density, 4 files" in capsys.readouterr().out
    path = f"{folder}/density.npy"
    with open(path, "r+b") as stream:  # noqa: PTH123
        stream.seek(-1, 2)
        stream.write(b"!")
    assert main(["verify", folder]) == 1
    assert "density.npy is damaged" in capsys.readouterr().err
    assert main(["verify", folder + "/none"]) == 1
    assert "is not an artifact" in capsys.readouterr().err


def test_verify_prints_json(flags, capsys):
    folder = flags[0][1]
    assert main(["verify", folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    entry = {"folder": folder, "kind": "density", "files": 4}
    assert found == {"stages": [], "artifacts": [entry]}


def test_every_command_that_prints_a_table_prints_json(capsys):
    silent = {"report", "offline-plots", "completion"}
    (commands,) = (one.choices for one in parser()._actions if one.choices)
    options = {name: {*one._option_string_actions} for name, one in commands.items()}
    assert {name for name in options if "--json" not in options[name]} == silent


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "isodense inspect" in capsys.readouterr().out


# --- commands on embeddings -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [tiny.encoder(root / name, seed=seed) for seed, name in enumerate(("one", "two"))]


def data_folder(folder, encoder, count, **changes):
    """Write prompts, their embeddings and weights, as the stages do."""
    tiny.prompts(folder / "prompts", count)
    params = PARAMS.model_copy(update=changes)
    cache = folder.parent / "cache"
    embed(folder / "prompts", encoder, params, "cpu", cache, folder / "embeddings")
    train = load_prompts(folder / "prompts").split("train")
    rising_weights(train, folder / "density")
    return folder


def run(capsys, *words):
    """Run a command and return its exit status and what it wrote."""
    status = main([str(word) for word in words])
    written = capsys.readouterr()
    assert "Traceback" not in written.out + written.err
    return status, written.out, written.err


def changed(folder, change):
    """Apply a function to every shard and describe the artifact anew."""
    manifest = read_manifest(folder, "embeddings")
    for path in folder.glob("shard-*.npy"):
        np.save(path, change(np.load(path)))
    for name in ("format_version", "kind", "files"):
        del manifest[name]
    write_manifest(folder, "embeddings", **manifest)


def recompute(capsys, data, encoder, count=8, *more):
    folders = ["--prompts", data / "prompts", "--encoder", encoder, *more]
    return run(capsys, "verify", data / "embeddings", "--recompute", count, *folders)


def test_recomputed_vectors_are_the_same(tmp_path, models, capsys):
    data = data_folder(tmp_path / "data", models[0], 20)
    status, out, _ = recompute(capsys, data, models[0])
    assert status == 0
    assert "8 prompts embedded again: same" in out
    found = recompute(capsys, data, models[0], 8, "--json")[1]
    entry = json.loads(found)["artifacts"][0]
    assert (entry["recomputed"], entry["verdict"], entry["other_model"]) == (8, "same", False)
    assert "20 prompts embedded again: same" in recompute(capsys, data, models[0], 64)[1]
    assert "files as its manifest says" in out


def test_drifted_vectors_are_told_and_are_no_error(tmp_path, models, capsys):
    data = data_folder(tmp_path / "data", models[0], 20)
    changed(data / "embeddings", lambda rows: (rows * (1 + 1e-6)).astype(np.float32))
    status, out, _ = recompute(capsys, data, models[0])
    assert status == 0
    assert re.search(r"drifted \(largest difference [1-9]\.\de-0[78]\)", out)


def test_another_model_is_an_error(tmp_path, models, capsys):
    data = data_folder(tmp_path / "data", models[0], 20)
    status, out, error = recompute(capsys, data, models[1])
    assert status == 1
    assert "different model (the hash of" in out
    assert "was not made by the model in" in error
    assert "dvc pull models" in error
    changed(data / "embeddings", lambda rows: np.roll(rows, 1, axis=1))
    status, out, _ = recompute(capsys, data, models[0])
    assert status == 1
    assert "different model (smallest cosine" in out


def test_recompute_leaves_other_artifacts_to_their_hashes(tmp_path, models, capsys):
    data = data_folder(tmp_path / "data", models[0], 20)
    status, out, _ = run(capsys, "verify", data / "density", data / "prompts", "--recompute", "8")
    assert status == 0
    assert len(out.splitlines()) == 2
    assert "embedded again" not in out


def test_what_recompute_lacks_is_named(tmp_path, models, capsys):
    data = data_folder(tmp_path / "data", models[0], 20)
    status, _, error = recompute(capsys, data, tmp_path / "none")
    assert status == 1
    assert f"{tmp_path / 'none'} is not there" in error
    other = data_folder(tmp_path / "other", models[0], 19)
    (other / "embeddings").rename(tmp_path / "away")
    (data / "embeddings").rename(other / "embeddings")
    status, _, error = recompute(capsys, other, models[0])
    assert status == 1
    assert "belong to other prompts" in error


def test_merged_parts_are_as_if_embedded_at_once(tmp_path, models, capsys):
    parts = [data_folder(tmp_path / f"part{count}", models[0], count) for count in (20, 30)]
    out = tmp_path / "merged"
    status, said, _ = run(capsys, "merge", *parts, "--output", out)
    assert status == 0
    assert "30 rows in 3 shards, 20 repeated prompts collapsed" in said
    vectors, manifest = load_vectors(out / "embeddings")
    whole, of_whole = load_vectors(parts[1] / "embeddings")
    merged = dict(
        zip(list(chain(*read_shard_ids(out / "embeddings", manifest))), vectors, strict=True)
    )
    expected = dict(
        zip(list(chain(*read_shard_ids(parts[1] / "embeddings", of_whole))), whole, strict=True)
    )
    assert merged.keys() == expected.keys()
    assert all((merged[name] == expected[name]).all() for name in expected)
    assert run(capsys, "verify", out / "embeddings", out / "prompts")[0] == 0
    assert "embedded again: same" in recompute(capsys, out, models[0])[1]


def test_parts_that_do_not_belong_together_are_refused(tmp_path, models, capsys):
    one = data_folder(tmp_path / "one", models[0], 20)
    two = data_folder(tmp_path / "two", models[1], 20, pooling="cls")
    status, _, error = run(capsys, "merge", one, two, "--output", tmp_path / "out")
    assert status == 1
    assert "params.pooling: auto in" in error
    assert "inputs.encoder" in error
    assert not (tmp_path / "out").exists()
    status, _, error = run(capsys, "merge", one, two, "--output", two)
    assert status == 1
    assert "would overwrite the part" in error
    status, _, error = run(capsys, "merge", one, tmp_path / "none", "--output", tmp_path / "out")
    assert status == 1


def test_an_export_has_prompt_weight_and_vector_of_each_training_prompt(tmp_path, models, capsys):
    data = data_folder(tmp_path / "data", models[0], 20)
    out, where = tmp_path / "prompts.jsonl", ["--data", data]
    options = ["--format", "jsonl", "--output", out, "--vectors", *where]
    status, said, _ = run(capsys, "export", *options)
    prompts = load_prompts(data / "prompts")
    train = prompts.split("train")
    assert status == 0
    assert f"{len(train)} prompts as jsonl" in said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in rows] == train.texts
    weights = np.load(data / "density" / "density_weights.npy")
    np.testing.assert_allclose([row["weight"] for row in rows], weights)
    vectors = load_vectors(data / "embeddings")[0][prompts.positions("train")]
    np.testing.assert_allclose([row["embedding"] for row in rows], vectors)
    status, _, error = run(capsys, "export", *options)
    assert status == 1
    assert "exists already" in error
    folder = tmp_path / "prototype"
    options = ["--format", "prototype", "--output", folder, "--encoder", models[0], *where]
    assert run(capsys, "export", *options)[0] == 0
    assert (np.load(folder / "embeddings.npy") == vectors).all()
    assert json.loads((folder / "embeddings_metadata.json").read_text())["model_n_embd"] == 32


def test_an_exported_plan_follows_the_flags(tmp_path, models, capsys):
    data = data_folder(tmp_path / "data", models[0], 20)
    out, heldout = tmp_path / "plan.jsonl", tmp_path / "heldout.jsonl"
    options = ["--format", "openrlhf", "--output", out, "--data", data]
    for flag, value in (("--seed", "1"), ("--sampling", "uniform")):
        status, _, error = run(capsys, "export", *options, flag, value)
        assert status == 1
        assert f"{flag} says how to draw" in error
        assert "add --draws N" in error
    plan = ["--draws", "40", "--seed", "6", "--sampling", "uniform"]
    status, said, _ = run(capsys, "export", *options, *plan, "--heldout", heldout)
    train = load_prompts(data / "prompts").split("train")
    assert status == 0
    assert f"{out}: 40 draws as openrlhf" in said
    assert f"{heldout}: {20 - len(train)} held-out prompts" in said
    ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert ids == [train.ids[row] for row in draw(np.ones(len(train)), 40, seed=6)]
    assert run(capsys, "export", *options, *plan)[0] == 1


@pytest.mark.parametrize("missing", ["prompts", "density", "embeddings"])
def test_what_an_export_lacks_is_named(tmp_path, models, capsys, missing):
    data = data_folder(tmp_path / "data", models[0], 20)
    (data / missing).rename(tmp_path / "away")
    out = tmp_path / "out"
    options = ["--format", "prototype", "--output", out, "--data", data]
    status, _, error = run(capsys, "export", *options)
    assert status == 1
    assert f"dvc repro {missing}" in error
    assert not out.exists()


@pytest.mark.parametrize("command", ["inspect", "verify", "merge", "export"])
def test_the_help_of_each_command_shows_an_example(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"example: isodense {command} " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["verify", "a", "--recompute", "0"],
        ["merge", "a", "b"],
        ["export", "--format", "csv", "--output", "a"],
        ["export", "--format", "verl", "--output", "a.parquet", "--draws", "0"],
        ["export", "--format", "verl", "--output", "a.parquet", "--draws", "-5"],
        ["export", "--format", "verl", "--output", "a.parquet", "--draws", "many"],
        ["export", "--format", "verl", "--output", "a.parquet", "--draws", "5", "--seed", "-1"],
        ["export", "--format", "verl", "--output", "a.parquet", "--draws", "5", "--sampling", "x"],
    ],
)
def test_a_wrong_call_shows_how_it_is_used(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "usage: isodense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["weihg", "a.jsonl"], "there is no command weihg (did you mean weigh?)"),
        (["--help-me", "xplain"], "there is no command xplain (did you mean explain?)"),
        (["weigh", "a.jsonl", "--outptu", "b.csv"], "--outptu b.csv (did you mean --output?)"),
        (["inspect", "--tpo=3"], "unrecognized arguments: --tpo=3 (did you mean --top?)"),
        (["inspect", "--nonsense"], "unrecognized arguments: --nonsense\n"),
        (["nonsense"], "choose from 'weigh', 'inspect'"),
    ],
)
def test_a_mistyped_word_is_guessed(capsys, words, said):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
