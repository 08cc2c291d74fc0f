"""The report says what the numbers say, and prompts in it are text, never markup."""

from __future__ import annotations

import html.parser

import numpy as np
import pytest

from isodense.plots import density_plots
from isodense.promptset import PromptSet
from isodense.report import decile_figure, read_metrics, training_figure, write_report
from isodense.weights import Weights

EVIL = "<script>alert(1)</script> & <img src=x onerror=alert(2)> {{ 7*7 }}"
METRICS = {
    "prompts": {"pairs": 2000},
    "density": {
        "prompts": 3,
        "ess_share": 0.77,
        "max_over_mean": 3.02,
        "labels": {"entropy": 0.903, "entropy_uniform": 0.821},
    },
    "reward": {
        "heldout": {"accuracy": 0.87, "low": 0.81, "high": 0.91},
        "length_only": {"accuracy": 0.52},
    },
    "eval": {
        "base": {"reward": -0.5, "self_bleu": 12.34, "truncated": 0.75},
        "trained": {"reward": 0.25, "self_bleu": 45.67, "truncated": 0.05, "kl": 3.21},
        "gain": {"reward": 0.75, "reward_low": 0.4, "reward_high": 1.1},
    },
}


def width(png: bytes) -> int:
    return int.from_bytes(png[16:20], "big")


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.sources = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tmp_path):
    texts = {"a": EVIL, "b": "two", "c": "three"}
    rows = [{"id": i, "text": text, "count": 1, "label": "x"} for i, text in texts.items()]
    train = PromptSet(rows)
    weights = Weights(
        np.array([0.5, 0.3, 0.2], np.float32),
        np.zeros(3, np.float32),
        np.array([b"a", b"b", b"c"]),
        {"inputs": {"neighbors": "1f"}, "ids_sha256": train.ids_sha256},
    )
    completion = {
        "text": EVIL,
        "base": [EVIL, "second"],
        "base_reward": [-1.0, 0.0],
        "trained": ["y", "z"],
        "trained_reward": [1, 1.5],
    }
    out = tmp_path / "deep" / "index.html"
    write_report(out, weights, train, METRICS, {"a figure": b"PNG"}, [completion])
    reader = Reader()
    reader.feed(out.read_text())
    return reader


def test_the_headlines_are_there(page):
    for words in ("77%", "0.903", "87%", "length alone 52%", "-0.50 → 0.25", "+0.40 to +1.10"):
        assert words in page.text
    assert "reward.heldout.accuracy" in page.text


def test_both_policies_stand_side_by_side(page):
    _, table = page.text.split("Base against trained policy")
    table, _ = table.split("Most weighted prompts")
    for words in ("-0.500.25", "12.345.7", "75%5%", "–3.21"):
        assert words in table
    assert "Vendi" not in table  # was not measured


def test_prompts_are_inert_and_nothing_is_fetched(page):
    assert "script" not in page.tags
    assert EVIL in page.text
    assert page.tags.count("img") == 1
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)


def test_most_and_least_weighted_are_in_order(page):
    _, tables = page.text.split("Most weighted prompts")
    most, least = tables.split("Least weighted prompts")
    assert most.index("1.50") < most.index("0.90") < most.index("0.60")
    assert least.index("0.60") < least.index("0.90") < least.index("1.50")


def test_figures_are_pngs_whose_bytes_repeat(tmp_path):
    series = tmp_path / "live" / "plots" / "metrics" / "train"
    series.mkdir(parents=True)
    rows = "".join(f"{step}\t{step / 10}\n" for step in range(1, 21))
    (series / "reward.tsv").write_text("step\treward\n" + rows)
    table = tmp_path / "deciles.csv"
    lines = [f"{d},0.5,{p},{d},{d - 1},{d + 1}\n" for d in (1, 2) for p in ("base", "trained")]
    table.write_text("decile,density,policy,reward,low,high\n" + "".join(lines))
    narrow = decile_figure(table)
    table.write_text(
        "".join(
            f"{line},{extra}\n"
            for line, extra in zip(
                table.read_text().splitlines(), ["zero_signal", 0, 0.5, 1, 0.25], strict=True
            )
        )
    )
    wide = decile_figure(table)
    for figure in (training_figure(tmp_path / "live"), narrow, wide):
        assert figure.startswith(b"\x89PNG")
    assert width(wide) > width(narrow)
    assert training_figure(tmp_path / "live") == training_figure(tmp_path / "live")


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
