"""Weights go to the Hub and come back: against a stand-in, through ``huggingface_hub`` itself."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import HfApi

import isodense
from isodense.cli.main import main
from isodense.cli.push import write_table
from isodense.map.reader import load_coordinates
from isodense.models import publish as models
from isodense.pipeline.artifact import content_sha256
from isodense.pipeline.errors import ArtifactError, DataError, IsodenseError
from isodense.prompts.reader import load_prompts
from isodense.weighing.settings import settings
from isodense.weighing.weigh import _encoder
from tests.damage import reseal
from tests.hub import Fault

ADDRESS = "hf://team/prompt-weights"


@pytest.fixture
def mine(finished, hub, tmp_path, monkeypatch):
    """Give a copy of a project's data and a Hub that may be written."""
    hub.writable = tmp_path / "hub"
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    shutil.copytree(finished.root / "data", tmp_path / "mine/data")
    monkeypatch.chdir(tmp_path / "mine")
    return tmp_path / "mine/data"


def push(capsys, *words):
    assert main(["push", ADDRESS, *words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def table(hub, commit):
    return pq.read_table(hub.find("datasets", "team/prompt-weights", commit)[1] / "weights.parquet")


def test_what_was_pushed_is_loaded_as_it_was(mine, hub, capsys):
    commit = push(capsys)["commit"]
    own, found = isodense.load_weights("data/density"), isodense.load_weights(ADDRESS, rev=commit)
    for name in ("weights", "density", "clusters", "prompt_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(own, name))
    assert found.metadata == own.metadata
    assert isodense.load_weights(f"{ADDRESS}@{commit}").metadata == own.metadata


def test_the_table_says_the_same_and_no_text(mine, hub, capsys):
    rows = table(hub, push(capsys)["commit"])
    prompts, coordinates = load_prompts("data/prompts"), load_coordinates("data/map")[0]
    own = isodense.load_weights("data/density")
    names = ["prompt_id", "row", "weight", "density", "cluster", "x", "y"]
    assert rows.column_names == names
    places = rows["row"].to_pylist()
    assert rows["prompt_id"].to_pylist() == [prompts.ids[place] for place in places]
    assert prompts.split("train").ids == [prompts.ids[place] for place in places]
    np.testing.assert_array_equal(rows["weight"].to_numpy(), own.weights)
    np.testing.assert_array_equal(rows["x"].to_numpy(), coordinates[places, 0])


def test_prompts_go_along_where_that_is_asked_for(mine, hub, capsys, tmp_path):
    commit = push(capsys, "--with-prompts")["commit"]
    folder = hub.find("datasets", "team/prompt-weights", commit)[1]
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    train = load_prompts("data/prompts").split("train")
    assert loaded["prompt"][3] == train.rows[3]["prompt"]
    assert loaded["text"][:] == train.texts
    assert len(loaded) == len(train)


def test_the_card_has_figures_source_and_a_use_that_runs(mine, hub, capsys):
    commit = push(capsys, "--with-prompts")["commit"]
    text = (hub.find("datasets", "team/prompt-weights", commit)[1] / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["size_categories"] == ["n<1K"]
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "weights.parquet"}]
    own = isodense.load_weights("data/density")
    assert f"| training prompts | {len(own.weights)} |" in text
    assert f"| effective sample size | {own.metadata['ess']:,.0f} (" in text
    assert "| density.k | 50 |" in text
    code = re.search(r"## Use\n\n```python\n(.*?)```", text, re.DOTALL)[1]
    my_data = {"prompt": load_prompts("data/prompts").split("train").ids[:5]}
    scope = {"my_data": my_data}
    exec(code, scope)  # noqa: S102
    assert scope["weights"].sum() == pytest.approx(1)
    assert len(scope["rows"]) == 4096


def test_the_card_names_no_encoder_and_no_commit_that_are_not_of_these_weights(
    mine, finished, tmp_path, capsys
):
    root = tmp_path / "project"
    shutil.copytree(finished.root, root, symlinks=True)
    assert "| encoder | tiny-encoder |" in card_of(root / "data", tmp_path / "one", capsys)
    shutil.copytree(root / "data", root / "other")  # as `isodense weigh --work other` leaves it
    manifest = json.loads((root / "other/embeddings/manifest.json").read_text())
    manifest["inputs"]["encoder"] = "0" * 64
    (root / "other/embeddings/manifest.json").write_text(json.dumps(manifest))
    text = card_of(root / "other", tmp_path / "two", capsys)
    assert "| encoder |" not in text
    assert "git commit" not in text


def test_columns_of_the_data_with_a_name_of_ours_go_along_under_another(mine, capsys, tmp_path):
    shard = next((mine / "prompts").glob("*.parquet"))
    rows = pq.read_table(shard)
    theirs = {"weight": [float("nan")], "weight_": ["é\u2028🥚" * 5000], "paraphrases": [[1]]}
    for name, values in (theirs | {"a|b": [""]}).items():
        rows = rows.append_column(name, pa.array(values * len(rows)))
    pq.write_table(rows, shard)
    reseal(mine / "prompts")
    out = tmp_path / "deep/out"
    push(capsys, "--with-prompts", "--dry-run", str(out))
    found = pq.read_table(out / "weights.parquet")
    np.testing.assert_array_equal(found["weight"], isodense.load_weights("data/density").weights)
    assert np.isnan(found["weight_"][0].as_py())
    assert [found["weight__"][0].as_py()] == theirs["weight_"]
    assert found["paraphrases_"][0].as_py() == [1]
    lines = (out / "README.md").read_text().splitlines()
    assert "| `weight_` | of the data |" in lines
    assert "| `a\\|b` | of the data |" in lines


@pytest.mark.parametrize("pinned", [True, False])
def test_the_card_names_the_encoder_that_weigh_has_used(
    mine, finished, tmp_path, monkeypatch, capsys, pinned
):
    folder = yaml.safe_load((finished.root / "params.yaml").read_text())["models"]["encoder"][
        "name"
    ]
    here, publish = settings({}, folder), models.publish

    def published(role, params, out, cache):  # whatever is pinned: no network here
        publish(role, here.encoder, out, cache)

    monkeypatch.setattr(models, "publish", published)
    assert "| encoder |" not in card_of(mine, tmp_path / "one", capsys)
    _encoder(settings({}) if pinned else here, tmp_path / "cache", mine)  # of `weigh --work mine`
    assert "| encoder | tiny-encoder |" in card_of(mine, tmp_path / "two", capsys)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: cc-by-4.0\n---\n", "cc-by-4.0"),
        ("---\nlicense: [mit]\n---\n", "mit"),
        ("---\nlicense: [mit, gpl]\n---\n", None),
        ("---\nlicense: {}\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("no metadata", None),
        (None, None),
    ],
)
def test_the_licence_of_a_data_set_of_the_hub_is_that_of_its_card(
    mine, hub, capsys, tmp_path, card, licence
):
    revision = "c" * 40
    if card is not None:
        (tmp_path / "source").mkdir()
        (tmp_path / "source/README.md").write_text(card)
        hub.add("org/source", tmp_path / "source", revision=revision)
    source = {"sources": ["hub"], "hub": {"repo": "org/source", "revision": revision}}
    _from_source(mine, source)
    text = card_of(mine, tmp_path / "out", capsys)
    assert yaml.safe_load(text.split("---")[1]).get("license") == licence
    said = licence or "not known to isodense"
    assert f"- hub org/source {revision}: {said}\n" in text


def test_the_card_says_nothing_of_examples_and_neighbours_of_other_weights(mine, capsys, tmp_path):
    _from_source(mine, {"sources": ["hh"]})
    text = card_of(mine, tmp_path / "one", capsys)
    assert "| sha256 of examples |" in text
    assert "- hh: mit" in text
    for name in ("examples", "neighbors"):
        path = mine / name / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"params": {"sources": ["x"]}}))
    text = card_of(mine, tmp_path / "two", capsys)
    assert "## Licence\n\nNot known to isodense." in text
    for name in ("examples", "neighbors", "embeddings"):
        assert f"| sha256 of {name} |" not in text
    assert "| sha256 of prompts |" in text


def _from_source(data, params):
    """Make a data folder say that its examples were made with other params."""
    path, used = data / "examples/manifest.json", data / "prompts/manifest.json"
    manifest = json.loads(path.read_text()) | {"params": params}
    path.write_text(json.dumps(manifest))
    inputs = {"inputs": {"examples": content_sha256(manifest)}}
    used.write_text(json.dumps(json.loads(used.read_text()) | inputs))


def test_the_card_has_the_hashes_that_dvc_lock_pins_and_the_commit_that_holds_them(
    finished, tmp_path, capsys
):
    root = tmp_path / "project"
    shutil.copytree(finished.root, root, symlinks=True)
    lock = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    text = card_of(root / "data", tmp_path / "one", capsys)
    for name, stage in (("prompts", "prompts"), ("density", "density"), ("map", "map")):
        md5 = next(o["md5"] for o in lock[stage]["outs"] if o["path"] == f"data/{name}")
        assert f"| {name} in dvc.lock | {md5} |" in text
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    assert f"| git commit of the project | {head.stdout.strip()} |" in text
    (root / "dvc.lock").open("a").write("# not committed\n")
    assert "git commit" not in card_of(root / "data", tmp_path / "two", capsys)


@pytest.mark.parametrize("name", ["density", "map", "prompts"])
def test_what_dvc_lock_does_not_pin_is_not_published(finished, tmp_path, capsys, name):
    root = tmp_path / "project"
    shutil.copytree(finished.root, root, symlinks=True)
    path = root / "data" / name / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    out = tmp_path / "out"
    assert main(["push", ADDRESS, "--data", str(root / "data"), "--dry-run", str(out)]) == 1
    said = capsys.readouterr().err
    assert f"data/{name} is not the one that dvc.lock pins\n  -> `dvc checkout --force" in said
    assert not out.exists()


def card_of(data, out, capsys):
    assert main(["push", ADDRESS, "--data", str(data), "--dry-run", str(out)]) == 0
    capsys.readouterr()
    return (out / "README.md").read_text()


def test_a_second_push_is_a_commit_that_replaces_the_first(mine, hub, capsys):
    first = push(capsys)["commit"]
    before = isodense.load_weights(ADDRESS).weights
    (mine / "density/stray.npy").touch()
    changed = np.load(mine / "density/density_weights.npy")[::-1]
    _rewrite(mine / "density", changed)
    second = push(capsys, "-m", "steeper")["commit"]
    assert first != second
    np.testing.assert_array_equal(isodense.load_weights(ADDRESS, rev=second).weights, changed)
    np.testing.assert_array_equal(isodense.load_weights(ADDRESS, rev=first).weights, before)
    folder = hub.find("datasets", "team/prompt-weights", "main")[1]
    assert not (folder / "data/density/stray.npy").exists()


def _rewrite(folder, weights):
    path, manifest = (
        folder / "density_weights.npy",
        json.loads((folder / "manifest.json").read_text()),
    )
    np.save(path, weights)
    manifest["files"][path.name]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_push_is_one_commit_and_none_where_nothing_is_new(mine, hub, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: True)  # as installed
    first = push(capsys)
    assert (hub.commits, first["new"]) == (1, True)
    again = push(capsys)
    assert (hub.commits, again["new"], again["commit"]) == (1, False, first["commit"])
    assert main(["push", ADDRESS]) == 0
    assert "nothing new, so no commit was made" in capsys.readouterr().out


def test_of_two_pushes_at_once_one_is_refused(mine, hub, capsys, monkeypatch):
    first = push(capsys)["commit"]
    _rewrite(mine / "density", np.load(mine / "density/density_weights.npy")[::-1])
    whole = HfApi.create_commit

    def overtaken(*args, **kwargs):
        hub.commit("team/prompt-weights", "main", [{"key": "header", "value": {}}])
        return whole(*args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    assert main(["push", ADDRESS]) == 1
    assert "another commit has come in between\n  -> see what it is" in capsys.readouterr().err
    own = isodense.load_weights(ADDRESS, rev=first).weights
    np.testing.assert_array_equal(isodense.load_weights(ADDRESS).weights, own)


def test_a_branch_leaves_the_main_one(mine, hub, capsys):
    commit = push(capsys)["commit"]
    assert main(["push", f"{ADDRESS}@trial", "--json"]) == 0
    capsys.readouterr()
    assert hub.find("datasets", "team/prompt-weights", "main")[0] == commit
    isodense.load_weights(ADDRESS, rev="trial")


def test_a_data_set_is_private_where_that_is_asked_for(mine, hub, capsys):
    push(capsys, "--private")
    assert hub.private == {"team/prompt-weights": True}
    push(capsys, "--private")


def test_nothing_goes_into_a_public_data_set_that_was_to_be_private(mine, hub, capsys):
    first = push(capsys)["commit"]
    assert main(["push", ADDRESS, "--private"]) == 1
    assert "exists and is public: nothing was sent" in capsys.readouterr().err
    assert hub.find("datasets", "team/prompt-weights", "main")[0] == first


def test_a_commit_that_is_there_needs_no_network(mine, hub, capsys, monkeypatch):
    commit = push(capsys)["commit"]
    isodense.load_weights(ADDRESS, rev=commit)
    asked = len(hub.requests)
    code = (
        f"import isodense; print(len(isodense.load_weights({ADDRESS!r}, rev={commit!r}).weights))"
    )
    environ = {**hub.environ(mine.parent.parent), "HF_HUB_OFFLINE": "1"}
    environ["HF_HUB_CACHE"] = str(mine.parent.parent / "hf")
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environ},
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout == f"{len(isodense.load_weights('data/density').weights)}\n", done.stderr
    assert len(hub.requests) == asked


def test_nothing_is_sent_of_a_dry_run(mine, hub, capsys, tmp_path):
    found = push(capsys, "--dry-run", str(tmp_path / "dry"))
    assert not hub.requests
    isodense.load_weights(tmp_path / "dry/data/density")
    assert main(["push", ADDRESS, "--dry-run", str(tmp_path / "dry")]) == 1
    assert "dry exists already" in capsys.readouterr().err
    assert found["bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "dry").rglob("*") if path.is_file()
    )


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_hub_that_refuses_is_an_error_that_says_how_to_log_in(mine, hub, capsys):
    hub.writable = None
    assert main(["push", ADDRESS]) == 1
    said = capsys.readouterr().err
    assert "hf://team/prompt-weights cannot be written: the Hub refuses it (403)" in said
    assert "hf auth login" in said


@pytest.mark.parametrize(
    "address",
    ["team/prompt-weights", "hf://prompt-weights", "hf://a/b/c", "hf://a--b/c", "hf://ä/b",
     "hf://a/b.git", "hf://a/.b", f"hf://a/{'b' * 100}", "hf://a/b@"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_before_anything_is_sent(mine, hub, capsys, address):
    assert main(["push", address]) == 1
    assert "write it as hf://owner/name" in capsys.readouterr().err
    if address.startswith("hf:"):
        with pytest.raises(IsodenseError, match="write it as hf://owner/name"):
            isodense.load_weights(address)
    assert not hub.requests


def test_a_connection_that_is_cut_leaves_no_half(mine, hub, capsys, monkeypatch):
    sleep, cut = (
        "huggingface_hub.utils._http.time.sleep",
        lambda handler: handler.connection.close(),
    )
    monkeypatch.setattr(sleep, lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr("tests.hub._Handler.do_PUT", cut)
        assert main(["push", ADDRESS]) == 1
    assert "again: finished files are not sent twice" in capsys.readouterr().err
    assert hub.commits == 0
    commit = push(capsys)["commit"]
    hub.faults["data/density/density.npy"] = Fault(drop_at=100)
    with pytest.raises(DataError, match=r"could not be fetched .*\n  -> check the connection"):
        isodense.load_weights(ADDRESS, rev=commit)
    hub.faults.clear()
    isodense.load_weights(ADDRESS, rev=commit)


def test_a_commit_cannot_be_pushed_to(mine, hub, capsys):
    assert main(["push", f"{ADDRESS}@{'a' * 40}"]) == 1
    assert "is a commit, which stays as it is\n  -> name a branch" in capsys.readouterr().err
    assert not hub.requests


def test_a_data_set_of_something_else_keeps_its_card(mine, hub, capsys, tmp_path):
    (tmp_path / "theirs").mkdir()
    for name in ("README.md", "train.csv"):
        (tmp_path / "theirs" / name).write_text("theirs")
    first = hub.add("team/prompt-weights", tmp_path / "theirs")
    assert main(["push", ADDRESS]) == 1
    assert "holds other data (train.csv): nothing was sent" in capsys.readouterr().err
    assert hub.find("datasets", "team/prompt-weights", "main")[0] == first


def test_a_map_of_other_prompts_is_not_published(mine, hub, capsys):
    manifest = json.loads((mine / "map/manifest.json").read_text()) | {"ids_sha256": "0" * 64}
    (mine / "map/manifest.json").write_text(json.dumps(manifest))
    assert main(["push", ADDRESS]) == 1
    assert "coordinates" in capsys.readouterr().err
    assert not hub.requests


def test_what_cannot_be_loaded_says_why(mine, hub, capsys, tmp_path):
    with pytest.raises(DataError, match="no such repository"):
        isodense.load_weights("hf://team/none")
    with pytest.raises(IsodenseError, match="write it as hf://"):
        isodense.load_weights("hf://none")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/README.md").touch()
    hub.add("team/other", tmp_path / "other")
    with pytest.raises(ArtifactError, match="has no data/density at main"):
        isodense.load_weights("hf://team/other")
    commit = push(capsys)["commit"]
    with pytest.raises(DataError, match="revision 'v9'"):
        isodense.load_weights(ADDRESS, rev="v9")
    hub.faults["team/prompt-weights"] = Fault(status=403)
    with pytest.raises(DataError, match="gated"):
        isodense.load_weights(ADDRESS, rev=commit)


def test_damage_on_the_way_is_noticed(mine, hub, capsys):
    commit = push(capsys)["commit"]
    path = hub.find("datasets", "team/prompt-weights", commit)[1] / "data/density/density.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match=r"density\.npy"):
        isodense.load_weights(ADDRESS, rev=commit)


def test_what_was_damaged_in_the_cache_is_fetched_again_once_the_folder_named_is_gone(
    mine, hub, capsys, tmp_path
):
    commit = push(capsys)["commit"]
    density = np.array(isodense.load_weights(ADDRESS, rev=commit).density)
    kept = next((tmp_path / "hf").rglob("density.npy")).resolve()
    kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match=r"density\.npy is damaged") as caught:
        isodense.load_weights(ADDRESS, rev=commit)
    shutil.rmtree(re.search(r"delete (.+) to fetch it again", caught.value.hint)[1])
    found = isodense.load_weights(ADDRESS, rev=commit)
    np.testing.assert_array_equal(found.density, density)


def test_arguments_that_contradict_the_address_are_errors(hub):
    with pytest.raises(IsodenseError, match="names one revision, and rev='v8' another"):
        isodense.load_weights(f"{ADDRESS}@v9", rev="v8")
    with pytest.raises(IsodenseError, match="remote='s3' a DVC remote"):
        isodense.load_weights(ADDRESS, remote="s3")
    assert not hub.requests


def test_where_there_is_no_such_revision_the_hint_names_those_that_there_are(mine, hub, capsys):
    push(capsys)
    hub.branch("team/prompt-weights", "v1.0")
    isodense.load_weights(f"{ADDRESS}@v1.0", rev="v1.0")
    with pytest.raises(DataError, match="has no revision 'v9'") as caught:
        isodense.load_weights(ADDRESS, rev="v9")
    assert caught.value.hint == "name a full commit hash, or one of v1.0, main"
    with pytest.raises(DataError, match="has no revision '0000"):
        isodense.load_weights(ADDRESS, rev="0" * 39 + "f")


@pytest.mark.parametrize(
    ("version", "hint"),
    [(99, "upgrade isodense: a newer one"), (1, "name another revision, or ask")],
)
def test_weights_of_another_isodense_say_which_side_is_to_move(mine, hub, tmp_path, version, hint):
    folder = tmp_path / "theirs/data/density"
    shutil.copytree(mine / "density", folder)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"format_version": version}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    hub.add("team/prompt-weights", tmp_path / "theirs")
    with pytest.raises(ArtifactError, match=f"format version {version}; .*\n  -> {hint}"):
        isodense.load_weights(ADDRESS)


def test_a_branch_that_cannot_be_looked_up_is_not_what_it_was(mine, hub, capsys, monkeypatch):
    push(capsys)
    own = isodense.load_weights(ADDRESS)
    hub.faults["team/prompt-weights"] = Fault(status=503)
    with pytest.raises(DataError, match="revision 'main' could not be fetched"):
        isodense.load_weights(ADDRESS)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    np.testing.assert_array_equal(isodense.load_weights(ADDRESS).weights, own.weights)


def test_rows_that_stay_are_not_sent_again(tmp_path):
    """A hundredth of the rows comes into the middle: Xet, which cuts by content, finds the rest."""
    hf_xet = pytest.importorskip("hf_xet")
    rng = np.random.default_rng(0)
    texts = [rng.bytes(60).hex() for _ in range(101_000)]
    grown = [*texts[:50_000], *texts[-1000:], *texts[50_000:100_000]]
    sent = []
    for rows in (texts[:100_000], grown):
        write_table(pa.table({"text": rows}), tmp_path / "table.parquet")
        commit = hf_xet.XetSession().new_upload_commit(endpoint=f"local://{tmp_path}/store")
        commit.start_upload_file(str(tmp_path / "table.parquet"))
        sent.append(commit.wait_to_finish().dedup_metrics.new_bytes)
    assert sent[0] > 5_000_000
    assert sent[1] < 0.1 * sent[0]  # a half of it where pages are cut by count
