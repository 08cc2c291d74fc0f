"""The table of experiments, and how it is sorted and written."""

from __future__ import annotations

import argparse
import csv
import io
import json

import pytest

from isodense.cli.commands import experiments as command
from isodense.experiments import table as experiments
from isodense.experiments.table import Experiment, as_csv, as_json, ordered, table
from isodense.pipeline.errors import IsodenseError


def made(name, state="", k=50, reward=None, **params):
    metrics = {"density.ess": 1248.986, "density.exponent": 1.063289}
    if reward is not None:
        metrics |= {
            "eval.gain.reward": reward,
            "eval.gain.reward_low": reward - 0.5,
            "eval.gain.reward_high": reward + 0.5,
        }
    shown = {"density.k": k, "density.ess": 0.8, "train.sampling": "density", "base.seed": 0}
    return Experiment(name, name * 2, "main", state, shown | params, {} if state else metrics)


ROWS = [
    made("main", reward=1.0),
    made("bold", reward=-2.0, **{"train.beta": 0.1}),
    made("ten", k=10),
    made("wait", state="queued"),
]


def test_the_table_has_the_params_that_differ_and_nothing_stale():
    head, *lines = table(ROWS).splitlines()
    assert head.split()[:5] == ["experiment", "k", "ess", "sampling", "train.beta"]
    assert "base.seed" not in head
    assert head.split()[-1] == "state"
    main, bold, ten, wait = lines
    assert "1.00 ±0.50" in main
    assert "−2.00 ±0.50" in bold
    assert "1249" in ten
    assert "±" not in ten
    assert "1249" not in wait
    assert wait.endswith("queued")
    end = head.index("gain") + len("gain")
    assert [line[:end].endswith(("±0.50", "–")) for line in lines] == [True] * 4


def test_means_over_labels_are_columns_where_they_are_known():
    row = made("main", reward=1.0)
    known = {f"eval.trained.answer_probability_over_labels{end}": value
             for end, value in (("", 0.2514), ("_low", 0.2), ("_high", 0.3))}  # fmt: skip
    text = table([Experiment(row.name, row.rev, row.baseline, "", row.params, row.metrics | known)])
    assert "P(answer) by label" in text
    assert "0.251 ±0.050" in text
    assert "by label" not in table([row])


def test_without_queued_ones_there_is_no_column_of_states():
    assert "state" not in table(ROWS[:3])
    assert "beta" not in table([ROWS[0], ROWS[2]])


def test_markdown_keeps_its_columns_whatever_a_name_holds():
    lines = table([made("a|b"), made("c")], markdown=True).splitlines()
    assert "a\\|b" in lines[2]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_sorted_largest_first_and_empty_ones_last():
    names = [row.name for row in ordered(ROWS, "gain")]
    assert names == ["main", "bold", "ten", "wait"]
    assert [row.name for row in ordered(ROWS, "gain", reverse=True)][:2] == ["bold", "main"]
    assert [row.name for row in ordered(ROWS, "experiment")] == ["bold", "main", "ten", "wait"]
    with pytest.raises(IsodenseError, match=r"no column 'ge'.*\n.*gain"):
        ordered(ROWS, "ge")


def test_csv_and_json_have_all_digits():
    rows = list(csv.DictReader(io.StringIO(as_csv(ROWS))))
    assert [row["experiment"] for row in rows] == ["main", "bold", "ten", "wait"]
    assert (rows[0]["params.density.ess"], rows[0]["metrics.density.ess"]) == ("0.8", "1248.986")
    assert rows[0]["metrics.density.exponent"] == "1.063289"
    assert rows[1]["metrics.eval.gain.reward_low"] == "-2.5"
    assert rows[2]["metrics.eval.gain.reward"] == ""
    loaded = json.loads(as_json(ROWS))
    assert loaded[1]["params"]["train.beta"] == 0.1
    assert loaded[3]["metrics"]["density.ess"] is None


def test_outside_a_project_the_error_says_where_to_run_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsodenseError, match="in the project's folder"):
        experiments.experiments()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(IsodenseError, match="`dvc exp show` failed: "):
        experiments.experiments()


def test_what_to_do_is_said_of_unfinished_experiments_and_not_of_their_commit(capsys, monkeypatch):
    half = Experiment("main", "m", "main")
    monkeypatch.setattr(experiments, "experiments", lambda *_: [half, *ROWS[2:]])
    args = argparse.Namespace(num=1, all_commits=False, sort=None, reverse=False, form=None)
    command.run(args)
    assert "`dvc exp apply ten`" in capsys.readouterr().out
    monkeypatch.setattr(experiments, "experiments", lambda *_: [half])
    command.run(args)
    assert "dvc exp apply" not in capsys.readouterr().out


def test_the_command_takes_one_format_at_most():
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers(required=True))
    assert parser.parse_args(["experiments", "--md", "--sort", "gain"]).form == "md"
    with pytest.raises(SystemExit):
        parser.parse_args(["experiments", "--md", "--csv"])


def test_what_verifiable_rewards_measure_has_columns_where_it_is_known():
    assert "pass@1" not in table(ROWS)
    solved = {"eval.trained.pass_at_1": 0.25, "reward.sampled.sometimes_solved": 0.125}
    solved |= {"eval.trained.pass_at_1_low": 0.2, "eval.trained.pass_at_1_high": 0.3}
    head, _, line = table([ROWS[0], Experiment("maths", "m", "main", "", {}, solved)]).splitlines()
    headings = "accuracy solvable reward gain pass@1 distinct-2"
    assert headings in " ".join(head.split())
    assert "0.250 ±0.050" in line
    assert "0.12 " in line
