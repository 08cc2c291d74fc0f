"""The report says what the artifacts say, and prompts in it are text, never markup."""

from __future__ import annotations

import base64
import gzip
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from isodense.cli.main import main
from isodense.density.artifact import publish
from isodense.density.estimate import estimate
from isodense.density.kinds import load_kinds
from isodense.density.opinion import judge, sentences
from isodense.density.plots import density_plots
from isodense.map.reader import COORDINATES
from isodense.neighbors.build import knn_graph
from isodense.neighbors.graph import DISTANCES, HELDOUT_DISTANCES, HELDOUT_INDICES, INDICES
from isodense.pipeline.artifact import (
    content_sha256,
    ids_sha256,
    publishing,
    write_json,
    write_manifest,
)
from isodense.pipeline.errors import ArtifactError, DataError
from isodense.pipeline.jsonl import write_jsonl
from isodense.report.charts import decile_charts, realised_charts, training_charts, weight_charts
from isodense.report.evaluation import kinds
from isodense.report.page import Sources, read_metrics, write_report
from isodense.report.prompts import one_line, shown
from isodense.report.provenance import checkout
from tests.damage import reseal
from tests.density.vectors import PARAMS
from tests.tables import write_prompts

EVIL = "<script>window.hit=1</script> & <img src=x onerror=window.hit=2> {{ 7*7 }} </script><!-- "
HOSTILE = [
    EVIL,
    "</textarea></title><svg onload=window.hit=3> <a href='javascript:window.hit=4'>x</a>",
    "first\u2028second\u2029third\x00\x1b[31m $$\\href{javascript:window.hit=5}{x}$$",
    "right \u202eto left\u2066 and a half \ufffd @text @$index {x}",
    "long " * 20_000,
]
METRICS = {
    "prompts": {"examples": 2000},
    "density": {
        "prompts": 3,
        "labels": {"entropy": 0.903, "entropy_uniform": 0.821},
    },
    "reward": {
        "heldout": {"accuracy": 0.87, "low": 0.81, "high": 0.91},
        "length_only": {"accuracy": 0.52},
    },
    "eval": {
        "base": {"reward": -0.5, "self_bleu": 12.34, "clipped_ratio": 0.75},
        "trained": {"reward": 0.25, "self_bleu": 45.67, "clipped_ratio": 0.05, "kl": 3.21},
        "gain": {"reward": 0.75, "reward_low": 0.4, "reward_high": 1.1},
    },
}
TRAIN, HELD = 30, 4
ASIDE = (8, 15, 22, 33)  # rows between the training ones, as prompts are split by chance


def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors: 27 far apart, then 3 together; held-out 0 is the sixth of them."""
    rng = np.random.default_rng(1)
    apart = rng.normal(size=(28 + HELD - 1, 8))
    together = apart[27] + rng.normal(0, 1e-3, (3, 8))
    train = np.concatenate([apart[:27], together])
    held = np.concatenate([apart[5:6], apart[28:]])
    return tuple(
        (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32) for X in (train, held)
    )


def rows(labels: bool, aside: tuple[int, ...]) -> list[dict]:
    texts = [*HOSTILE, *(f"prompt {number}" for number in range(len(HOSTILE), TRAIN + len(aside)))]
    made = []
    for number, text in enumerate(texts):
        row = {"id": f"{number * 37 % 251:02x}" * 16, "text": text, "count": number + 1}
        row |= {"sources": {"one": 1, "two": 1} if number % 2 else {"one": 1}}
        row |= {"split": "heldout" if number in aside else "train"}
        made.append(row | ({"label": f"<b>{number % 3}</b>"} if labels else {}))
    return made


def write_artifacts(
    data: Path, labels: bool = True, aside: tuple[int, ...] = ASIDE, by: str | None = None
) -> Sources:
    """Write prompts, neighbours, density and a map whose coordinates are known."""
    prompts = rows(labels, aside)
    ids = [row["id"] for row in prompts]
    write_prompts(data / "prompts", prompts)
    train, held = vectors()
    held = held[: len(aside)]
    graph = knn_graph(train, k=20)
    distances = np.linalg.norm(held[:, None] - train[None], axis=2).astype(np.float32)
    order = np.argsort(distances, axis=1, kind="stable")[:, :20]
    near = np.take_along_axis(distances, order, axis=1)
    arrays = {
        INDICES: graph.indices,
        DISTANCES: graph.distances,
        HELDOUT_INDICES: order.astype(np.int32),
        HELDOUT_DISTANCES: near,
    }
    of_train = [row["id"] for row in prompts if row["split"] == "train"]
    of_heldout = [row["id"] for row in prompts if row["split"] == "heldout"]
    hashes = {"ids_sha256": ids_sha256(of_train), "heldout_ids_sha256": ids_sha256(of_heldout)}
    with publishing(data / "neighbors") as made:
        for name, array in arrays.items():
            np.save(made / name, array)
        manifest = write_manifest(made, "neighbors", rows=TRAIN, k=20, dim=2, **hashes)
    params = PARAMS.model_copy(update={"k": 20, "balance_by": by})
    known = load_kinds(data / "prompts", by) if by else None
    found, inputs = estimate(graph, params, kinds=known), content_sha256(manifest)
    nothing = np.zeros(len(aside))
    opinion = judge(found, graph, params, {}, known)
    out = data / "density"
    publish(found, nothing, nothing > 0, of_train, params, opinion, manifest, inputs, out)
    number = np.arange(len(ids))
    coordinates = np.stack([number % 6, number // 6], axis=1).astype(np.float32)
    with publishing(data / "map") as made:
        np.save(made / COORDINATES, coordinates)
        write_manifest(made, "map", rows=len(ids), ids_sha256=ids_sha256(ids))
    return Sources(data / "prompts", data / "density", data / "neighbors", data / "map")


def write_results(reports: Path) -> dict[str, object]:
    """Write what training and evaluation leave, and return it as arguments of `Sources`."""
    write_json(reports / "metrics/density.json", METRICS)
    series = reports / "train/plots/metrics/train"
    series.mkdir(parents=True)
    lines = "".join(f"{step}\t{step / 10}\n" for step in range(1, 21))
    for name in ("loss", "reward", "zero"):
        (series / f"{name}.tsv").write_text(f"step\t{name}\n{lines}")
    (series / "loss.tsv").write_text("step\tloss\n1\t0.5\n2\tnan\n3\tinf\n4\t0.25\n")
    deciles = reports / "plots/reward_by_decile.csv"
    deciles.parent.mkdir(parents=True)
    lines = "".join(
        f"{d},0.5,{p},{d + (p == 'trained')},{d - 1},{d + 3},0.25\n"
        for d in (1, 2, 3)
        for p in ("base", "trained")
    )
    deciles.write_text("decile,density,policy,reward,low,high,frac_reward_zero_std\n" + lines)
    realised = reports / "train/realised.csv"
    realised.write_text(
        "kind,name,prompts,nominal_share,draws,draw_share,zero_signal,realised_share\n"
        "decile,1,4,0.25,2,0.25,0,0.5\ndecile,2,4,0.75,6,0.75,3,0.5\n"
        "label,rare,4,0.4,2,0.25,0,\nlabel,common,4,0.6,6,0.75,3,\n"
    )
    completion = {
        "text": EVIL,
        "base": [EVIL, "second"],
        "base_reward": [-1.0, 0.0],
        "trained": ["y", "z"],
        "trained_reward": [1, 1.5],
    }
    write_jsonl(reports / "completions.jsonl", [completion])
    return {
        "metrics": [reports / "metrics/density.json"],
        "training": reports / "train/plots/metrics",
        "deciles": deciles,
        "realised": realised,
        "completions": reports / "completions.jsonl",
    }


def everything(folder: Path) -> Sources:
    sources = write_artifacts(folder / "data")
    manifests = [path / "manifest.json" for path in (sources.prompts, sources.density)]
    return Sources(
        sources.prompts,
        sources.density,
        sources.neighbors,
        sources.map,
        manifests=manifests,
        **write_results(folder / "reports"),
    )


class Reader(html.parser.HTMLParser):
    """What a browser would see: tags, where they point to, text, and data blocks by id."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.sources, self.blocks, self.block = [], "", [], {}, None

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag == "script":
            self.block = dict(attrs).get("id", "")
            self.blocks[self.block] = ""

    def handle_endtag(self, tag):
        if tag == "script":
            self.block = None

    def handle_data(self, data):
        if self.block is None:
            self.text += data
        else:
            self.blocks[self.block] += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text())
    return reader


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_report(everything(folder), folder / "deep" / "index.html", folder / "images")
    return folder


@pytest.fixture(scope="module")
def page(whole):
    return read(whole / "deep" / "index.html")


def between(text: str, first: str, last: str) -> str:
    return text.split(first)[-1].split(last)[0]


def test_the_headlines_are_there(page):
    for words in ("0.903", "87%", "length alone 52%", "-0.50 → 0.25", "+0.40 to +1.10"):
        assert words in page.text
    assert "30" in between(page.text, "training prompts", "held out;")
    assert "reward.heldout.accuracy" in page.text


def test_both_policies_stand_side_by_side(page):
    table = between(page.text, "Base against trained policy", "Held-out completions")
    for words in ("-0.500.25", "12.345.7", "75%5%", "–3.21"):
        assert words in table
    assert "Vendi" not in table  # was not measured


def test_prompts_are_inert_and_nothing_is_fetched(page):
    assert page.tags.count("script") == 5  # two data blocks, three of ours
    assert not {"img", "svg", "link", "iframe", "textarea"} & set(page.tags)
    assert EVIL.strip() in page.text
    assert all(source.startswith("#") for source in page.sources)
    assert page.text.count("100,000 characters") >= 1
    assert len(page.text) < 100_000
    for unseen in "\u2028\u2029\u202e\u2066\x00\x1b":
        assert unseen not in page.text


def test_the_weights_begin_with_an_opinion_on_them(whole, page):
    opinion = json.loads((whole / "data" / "density" / "manifest.json").read_text())["opinion"]
    said = between(page.text, "What the weights do", "Duplicate clusters")
    assert " ".join(sentences(opinion)) in said
    assert said.index("Regions that are drawn") < said.index(sentences(opinion)[0])


def test_the_most_weighted_come_first_and_the_copies_last(page):
    most = between(page.text, "id says why", "Least weighted prompts")
    least = between(page.text, "Least weighted prompts", "Held-out prompts and")
    for table, copies_first in ((most, False), (least, True)):
        copies = [table.index(f"prompt {number}") for number in (30, 31, 32)]
        others = [table.index(f"prompt {n}") for n in range(10, 30) if n not in ASIDE]
        before, after = (copies, others) if copies_first else (others, copies)
        assert max(before) < min(after)


def test_groups_are_the_prompts_that_lie_together(page):
    groups = between(page.text, "Duplicate clusters", "Most weighted prompts")
    assert "The largest 1:" in groups
    assert "3 prompts, 96 occurrences" in groups  # 31 + 32 + 33
    assert all(f"prompt {number}" in groups for number in (30, 31, 32))
    assert "prompt 29" not in groups


def test_heldout_prompts_that_training_holds_are_flagged(page):
    section = between(page.text, "Held-out prompts and", "Held-out reward by")
    assert "1 of 4 held-out prompts are near-duplicates" in section
    assert "0.000" in section
    assert "prompt 8" in section  # held out
    assert "prompt 5" in section  # in training
    assert "the closest 4:" in section  # those beyond the radius, too
    words = re.findall(r"(yes|no)\n?prompt", section.replace("\t", ""))
    assert (words.count("yes"), words.count("no")) == (1, 3)


def test_the_map_holds_every_prompt_in_its_place(page):
    names = json.loads(page.blocks["charts"])["map"]
    block = gzip.decompress(base64.b64decode(page.blocks["map-data"]))
    count = names["rows"]
    assert count == TRAIN + HELD
    x, y, weight, asked = (
        np.frombuffer(block, dtype, count, 4 * count * place)
        for place, dtype in enumerate(("<f4", "<f4", "<f4", "<u4"))
    )
    assert (x + 6 * y == np.arange(count)).all()
    assert (asked == np.arange(count) + 1).all()
    held = np.isin(np.arange(count), ASIDE)
    assert (np.isnan(weight) == held).all()
    assert (np.frombuffer(block, np.uint8, count, 20 * count) == held).all()
    region = np.frombuffer(block, np.uint8, count, 21 * count)
    assert set(region) == set(range(len(names["regions"])))
    assert len(names["places"]) == len(names["regions"]) > 1
    ids = np.frombuffer(block, np.uint8, 16 * count, 22 * count).reshape(count, 16)
    assert [bytes(one).hex() for one in ids] == [row["id"] for row in rows(True, ASIDE)]
    assert weight[~held].mean() == pytest.approx(1, abs=1e-5)
    assert weight[30:33].sum() < 1.5  # the copies weigh about as much as one prompt
    source, label = (
        np.frombuffer(block, "<u2", count, 16 * count + 2 * count * place) for place in (0, 1)
    )
    assert names["sources"] == ["one", "one + two"]
    assert (source == np.arange(count) % 2).all()
    assert [names["labels"][number] for number in label[:4]] == [
        f"<b>{n % 3}</b>" for n in range(4)
    ]
    texts = block[38 * count :].decode().split("\n")
    assert len(texts) == count
    assert texts[-1] == f"prompt {count - 1}"
    assert max(map(len, texts)) <= 100


def test_charts_count_every_prompt_once(page):
    charts = {chart["id"]: chart for chart in json.loads(page.blocks["charts"])["charts"]}
    for name, count in (("density", TRAIN), ("weights", TRAIN), ("heldout", HELD)):
        assert sum(charts[f"chart-{name}"]["bars"][0]["counts"]) == count
    rank = charts["chart-rank"]["lines"][0]
    assert rank["x"][0] == 1
    assert rank["x"][-1] == TRAIN
    assert (np.diff(rank["y"]) <= 0).all()


def test_series_of_training_are_charts_with_the_reward_first(whole):
    charts = training_charts(whole / "reports/train/plots/metrics")
    assert [chart["id"] for chart in charts] == [
        "chart-training-reward",
        "chart-training-loss",
        "chart-training-zero",
    ]
    raw, smooth = charts[0]["lines"]
    assert raw["y"] == pytest.approx([step / 10 for step in range(1, 21)])
    assert smooth["x"] == [float(step) for step in range(2, 21)]
    assert smooth["y"] == pytest.approx([step / 10 - 0.05 for step in range(2, 21)])


def test_what_is_no_number_is_a_gap(whole):
    loss = training_charts(whole / "reports/train/plots/metrics")[1]["lines"][0]
    assert loss["y"] == [0.5, None, None, 0.25]


def test_a_long_training_is_thinned_from_its_first_to_its_last_step(tmp_path):
    lines = "".join(f"{step}\t{step}\n" for step in range(1, 50_001))
    (tmp_path / "loss.tsv").write_text("step\tloss\n" + lines)
    raw, smooth = training_charts(tmp_path)[0]["lines"]
    assert len(raw["x"]) == len(smooth["x"]) == 2000
    assert (raw["x"][0], raw["x"][-1], smooth["x"][-1]) == (1, 50_000, 50_000)
    assert raw["x"] == raw["y"]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.4, 1.1, "raised"), (-1.1, -0.4, "lowered"), (-0.2, 1.1, "did not clearly change")],
)
def test_the_first_sentence_follows_the_interval_of_the_gain(tmp_path, low, high, said):
    found = write_artifacts(tmp_path / "data")
    gain = {"reward": (low + high) / 2, "reward_low": low, "reward_high": high}
    write_json(tmp_path / "evaluate.json", {"eval": METRICS["eval"] | {"gain": gain}})
    sources = Sources(found.prompts, found.density, metrics=[tmp_path / "evaluate.json"])
    write_report(sources, tmp_path / "page.html")
    assert f"Training {said} the held-out reward" in read(tmp_path / "page.html").text


def test_kinds_of_prompts_stand_beside_the_plain_mean(tmp_path):
    ends = ("", "_low", "_high")
    found = {
        name: {f"pass_at_1{part}{end}": value + place / 100
               for part, value in (("", 0.5), ("_over_labels", 0.3), ("_worst_quarter", 0.1))
               for place, end in enumerate(ends)}
        for name in ("base", "trained")
    }  # fmt: skip
    for name in ("base", "trained"):
        found[name] |= {"reward": 1.0, "reward_over_labels": 2.0, "reward_worst_quarter": None}
    found["gain"] = {f"pass_at_1_over_labels{end}": 0.1 + place / 100
                     for place, end in enumerate(ends)}  # fmt: skip
    found["gain"] |= {"reward": 0.0, "reward_over_labels": -0.5, "reward_worst_quarter": None}
    rows = {(row["name"], row["over"]): row for row in kinds(found)}
    assert next(iter(rows)) == ("reward", "all labels alike")
    assert rows["pass@1", "all labels alike"] == {
        "name": "pass@1",
        "over": "all labels alike",
        "base": "30.0%",
        "trained": "30.0%",
        "gain": "+10.0%",
        "interval": "+11.0% to +12.0%",
    }
    worst = rows["reward", "the quarter where the policy itself is lowest"]
    assert (worst["base"], worst["gain"], worst["interval"]) == ("–", "–", "–")
    found["prompts"], found["labels"] = 64, 40
    made = write_artifacts(tmp_path / "data")
    write_json(tmp_path / "evaluate.json", {"eval": found})
    write_report(Sources(made.prompts, made.density, metrics=[tmp_path / "evaluate.json"]),
                 tmp_path / "page.html")  # fmt: skip
    text = read(tmp_path / "page.html").text
    assert "+10.0%+11.0% to +12.0%" in between(text, "Common and rare kinds of prompts", "Training")
    assert "on 40 labels" in text


def test_without_means_over_kinds_there_is_no_table_of_them(page):
    assert "Common and rare kinds" not in page.text


def test_deciles_keep_their_intervals(whole):
    reward, zero = decile_charts(whole / "reports/plots/reward_by_decile.csv")
    base, trained = reward["points"]
    assert base["x"] == trained["x"] == reward["ticks"] == [1, 2, 3]
    assert (base["y"], trained["y"]) == ([1, 2, 3], [2, 3, 4])
    assert base["low"] == [0, 1, 2]
    assert base["high"] == [4, 5, 6]
    assert zero["lines"][0]["y"] == [0.25] * 3


def test_draws_and_what_was_learnt_stand_side_by_side(whole):
    deciles, labels = realised_charts(whole / "reports/train/realised.csv")
    assert [line["y"] for line in deciles["lines"]] == [[0.25, 0.75], [0.25, 0.75], [0.5, 0.5]]
    assert deciles["note"].startswith("3 of 8 groups had one reward and taught nothing. Learnt")
    assert "differ by 25% of the total" in deciles["note"]
    assert [line["y"] for line in labels["lines"]] == [[0.6, 0.4], [0.75, 0.25], [None, None]]
    assert "differ" not in labels["note"]


@pytest.mark.parametrize("text", ["", "name,draws\na,1\n", "kind,name\ndecile,1\n"])
def test_a_damaged_table_of_what_was_learnt_names_the_stage_that_makes_it(tmp_path, text):
    (tmp_path / "realised.csv").write_text(text)
    with pytest.raises(DataError, match="dvc repro train") as raised:
        realised_charts(tmp_path / "realised.csv")
    assert "missing" in str(raised.value) or "no row of a density decile" in str(raised.value)


def test_shares_of_labels_need_every_label():
    density, relative = np.arange(4.0), np.array([0.5, 0.5, 1.0, 2.0])
    *_, shares = weight_charts(density, relative, ["a", "a", "a", "b"])
    uniform, weighted = shares["lines"]
    assert uniform["y"] == [75, 25]
    assert weighted["y"] == [50, 50]
    assert len(weight_charts(density, relative, ["a", "", "a", "b"])) == 3


def test_the_page_and_its_pictures_repeat_to_the_byte(whole, tmp_path):
    write_report(everything(tmp_path), tmp_path / "index.html", tmp_path / "images")
    first = (whole / "deep/index.html").read_text().replace(whole.as_posix(), "")
    assert (tmp_path / "index.html").read_text().replace(tmp_path.as_posix(), "") == first
    assert len(first) > 1_000_000
    names = sorted(path.name for path in (whole / "images").iterdir())
    assert names == ["heldout_distance.png", "map.png", "weight_rank.png"]
    for name in names:
        image = (whole / "images" / name).read_bytes()
        assert image.startswith(b"\x89PNG")
        assert image == (tmp_path / "images" / name).read_bytes()


def test_what_is_not_there_is_named(tmp_path):
    found = write_artifacts(tmp_path, labels=False)
    write_report(Sources(found.prompts, found.density), tmp_path / "page.html", tmp_path / "images")
    text = read(tmp_path / "page.html").text
    for stage in ("map", "neighbors", "evaluate", "train"):
        assert f"dvc repro {stage}" in text
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["heldout_distance.png", "map.png", "weight_rank.png"]  # outputs of the stage


def test_a_map_of_other_prompts_is_refused(tmp_path):
    found = write_artifacts(tmp_path)
    write_manifest(tmp_path / "map", "map", rows=TRAIN + HELD, ids_sha256="0" * 64)
    with pytest.raises(ArtifactError, match="dvc repro map"):
        write_report(found, tmp_path / "page.html")


def test_texts_are_cut_and_their_unseen_characters_marked():
    assert shown("a\r\n\tb\ud800\u200f") == "a\n\tb\ufffd\ufffd"
    assert shown("x" * 1001) == "x" * 1000 + "… (1,001 characters)"
    assert one_line("a\u2028b\n c", 100) == "a\ufffdb c"
    assert one_line("x" * 101, 100) == "x" * 99 + "…"


def git(folder: Path, *words: str) -> str:
    name = ("-c", "user.name=t", "-c", "user.email=t@example.invalid")
    command = ["git", *name, *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_command_adds_revision_and_lock(tmp_path, monkeypatch, capsys):
    write_artifacts(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("density: {k: 13}\n")
    lock = "stages:\n  density:\n    outs:\n    - {path: data/density, md5: abc123.dir}\n"
    (tmp_path / "dvc.lock").write_text(lock)
    (tmp_path / ".gitignore").write_text("data\n*.html\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "one")
    assert main(["report", "--output", "clean.html"]) == 0
    assert "clean.html" in capsys.readouterr().out
    text = read(tmp_path / "clean.html").text
    assert git(tmp_path, "rev-parse", "HEAD").strip() in text
    assert "with nothing changed" in text
    assert "abc123.dir" in text
    assert "density.k" in text
    assert "dvc repro train" in text
    (tmp_path / "params.yaml").write_text("density: {k: 14}\n")
    assert main(["report", "--output", "dirty.html"]) == 0
    text = read(tmp_path / "dirty.html").text
    assert "1 file" in text
    assert "params.yaml" in between(text, "changed files", "outputs in")


def test_the_command_leaves_the_page_of_the_stage_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--output", "reports/index.html"]) == 1
    assert "--output" in capsys.readouterr().err


def test_density_plots_hold_every_prompt(tmp_path):
    weights = np.random.default_rng(0).random(5000)
    weights /= weights.sum()
    density_plots(weights, -np.log(weights), None, tmp_path / "one")
    density_plots(weights, -np.log(weights), ["a", "b"] * 2500, tmp_path / "two")
    lines = (tmp_path / "one" / "weights.csv").read_text().splitlines()
    assert sum(int(line.split(",")[1]) for line in lines[1:]) == 5000
    points = (tmp_path / "one" / "density_weight.csv").read_text().splitlines()[1:]
    pairs = np.array([[float(x) for x in line.split(",")] for line in points])
    assert len(pairs) <= 2000
    assert (np.diff(pairs[:, 0]) >= 0).all()
    assert (np.diff(pairs[:, 1]) <= 0).all()
    for name in ("weights.csv", "density_weight.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "two" / "density.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_of_stages_are_merged(tmp_path):
    (tmp_path / "a.json").write_text('{"a": {"x": 1}}')
    (tmp_path / "b.json").write_text('{"b": 2}')
    assert read_metrics([tmp_path / "a.json", tmp_path / "b.json"]) == {"a": {"x": 1}, "b": 2}


# --- prompts to verify, without pairs -------------------------------------------------------------

VERIFIED = {
    "download": {"bad_rows": 0, "unusable": {"image parts": 3}},
    "prompts": {"examples": 60, "no_text": 1, "conflicting": {"answer": 2}},
    "reward": {
        "kind": "function",
        "sampled": {
            "prompts": 32,
            "never_solved": 0.75,
            "sometimes_solved": 0.25,
            "always_solved": 0.0,
            "frac_reward_zero_std": 0.78,
        },
    },
    "train": {"changed": 0},
    "eval": {
        "prompts": 9,
        "base": {"reward": 0.25, "pass_at_1": 0.25, "pass_at_4": 0.5, "tokens": 30},
        "trained": {"reward": None, "pass_at_1": 0.375, "pass_at_4": 0.625, "tokens": 31},
        "gain": {
            "reward": None,
            "reward_low": None,
            "reward_high": None,
            "pass_at_1": 0.125,
            "pass_at_1_low": 0.01,
            "pass_at_1_high": 0.24,
        },
    },
}


def test_prompts_to_verify_are_shown_by_what_is_solved_and_with_their_columns(tmp_path):
    folder = write_artifacts(tmp_path / "data")
    prompts = rows(True, ASIDE)
    for row in prompts:
        row |= {"answer": f"<i>{EVIL}</i>", "level": 3, "long": "x" * 500}
    shutil.rmtree(tmp_path / "data/prompts")
    write_prompts(tmp_path / "data/prompts", prompts)
    (tmp_path / "metrics.json").write_text(json.dumps(VERIFIED))
    write_report(
        Sources(folder.prompts, folder.density, metrics=[tmp_path / "metrics.json"]),
        tmp_path / "page.html",
    )
    page = read(tmp_path / "page.html")
    assert "Training had no signal" in page.text
    assert "25.0% → 37.5%" in page.text
    assert "gain +12.5%, 95% interval +1.0% to +24.0%" in page.text
    assert "pass@4" in page.text
    assert "solved before training" in page.text
    assert "never 75%" in page.text
    assert "reward model accuracy" not in page.text
    assert "1 without text" in page.text
    assert "3 image parts" in page.text
    assert "by column: answer (2)" in page.text
    most = between(page.text, "id says why", "Least weighted prompts")
    assert "level: 3; long: " + "x" * 119 + "…" in most
    assert "<i>" in most  # as text
    assert "i" not in page.tags


def test_labels_that_name_no_kinds_are_not_shown_as_such(tmp_path):
    folder = write_artifacts(tmp_path / "data")
    prompts = [row | {"label": f"answer {n}"} for n, row in enumerate(rows(False, ASIDE))]
    shutil.rmtree(tmp_path / "data/prompts")
    write_prompts(tmp_path / "data/prompts", prompts)
    write_report(Sources(folder.prompts, folder.density), tmp_path / "page.html")
    page = read(tmp_path / "page.html")
    assert "Share of each known label" not in page.blocks["charts"]
    assert "answer 1" not in page.text


# --- what was left out ----------------------------------------------------------------------------


def test_what_was_left_out_is_listed_with_its_stage(tmp_path):
    sources = write_artifacts(tmp_path / "data")
    (tmp_path / "metrics.json").write_text(json.dumps(VERIFIED))
    made = Sources(sources.prompts, sources.density, metrics=[tmp_path / "metrics.json"])
    write_report(made, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<li><b>download</b>: 3 rows left out: image parts</li>" in page
    assert "<li><b>prompts</b>: 1 example without text left out</li>" in page
    assert "<li><b>train</b>: the policy is unchanged</li>" in page
    assert "reward: 78.0% of the sampled groups have one reward" in page
    write_report(Sources(sources.prompts, sources.density), tmp_path / "page.html")
    assert "Nothing, as far as the metrics here say." in (tmp_path / "page.html").read_text()


def test_weights_that_were_edited_or_swapped_are_not_drawn_in_silence(tmp_path):
    sources = write_artifacts(tmp_path / "data")
    manifests = [path / "manifest.json" for path in (sources.density, sources.neighbors)]
    made = Sources(sources.prompts, sources.density, manifests=manifests)
    write_report(made, tmp_path / "page.html")
    assert "made from another" not in (tmp_path / "page.html").read_text()
    content = json.loads(manifests[0].read_text())
    content["inputs"]["neighbors"] = "0" * 64
    manifests[0].write_text(json.dumps(content))
    reseal(sources.density)
    write_report(made, tmp_path / "page.html")
    assert (
        "<li><b>density</b>: made from another neighbors than is here</li>"
        in (tmp_path / "page.html").read_text()
    )
    path = sources.density / "density_weights.npy"
    np.save(path, np.load(path)[::-1])
    with pytest.raises(ArtifactError, match=r"density_weights\.npy is damaged"):
        write_report(made, tmp_path / "page.html")


def test_a_repository_that_git_refuses_to_read_is_said_with_the_remedy(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "sub").mkdir()
    assert checkout(tmp_path / "sub")["refused"] is None  # no commit yet is another thing
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    found = checkout(tmp_path / "sub")
    assert found["revision"] is None
    assert found["refused"] == (
        f"git reads nothing of {tmp_path}, which another user owns (dubious ownership)",
        f"git config --global --add safe.directory {tmp_path}",
    )
    sources = write_artifacts(tmp_path / "data")
    made = Sources(sources.prompts, sources.density)
    write_report(made, tmp_path / "page.html", checkout=found)
    text = read(tmp_path / "page.html").text
    assert "Run git config --global --add safe.directory" in text
    assert "Not made in a git repository" not in text


def test_known_kinds_are_told_with_what_is_drawn_of_them(tmp_path):
    found = write_artifacts(tmp_path / "data", by="label")
    write_report(found, tmp_path / "page.html")
    page = read(tmp_path / "page.html")
    assert "What is drawn of each label is set by density.balance_by" in page.text
    assert page.text.count("33.3%") >= 3  # three labels, all alike
    plain = write_artifacts(tmp_path / "plain")
    write_report(plain, tmp_path / "plain.html")
    assert "density.balance_by" not in read(tmp_path / "plain.html").text
