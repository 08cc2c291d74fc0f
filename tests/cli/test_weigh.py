"""``isodense weigh`` on the command line: files in, files and words out, errors, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest

from isodense.cli.main import main
from isodense.pipeline.artifact import read_manifest
from isodense.weighing.summary import training_lines
from tests import tiny
from tests.project import HEARS

SMALL = ("-S", "embeddings.max_tokens=64", "-S", "map.epochs=20")
MAIN = f"""
{HEARS}
import sys
from isodense.cli.main import main
sys.exit(main())
"""
WITHOUT = "import sys\nsys.modules.update(dict.fromkeys({names}))  # none can be imported\n"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny.encoder(tmp_path_factory.mktemp("model") / "encoder")


@pytest.fixture
def weigh(encoder, tmp_path, monkeypatch, capsys):
    """Give the command in an empty folder with a file of prompts; it returns status and output."""
    monkeypatch.setenv("ISODENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": text, "n": i} for i, text in enumerate(tiny.texts(60))]
    write(Path("prompts.jsonl"), [*rows, *rows[:6]])

    def run(*words, model=True):
        status = main(["weigh", *words, *(("--encoder", str(encoder)) if model else ()), *SMALL])
        return status, *capsys.readouterr()

    return run


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_file_becomes_weights_and_words(weigh):
    status, out, err = weigh("prompts.jsonl", "--output", "weights.parquet", "--k", "10")
    assert status == 0, err
    frame = pd.read_parquet("weights.parquet")
    assert frame.columns.tolist() == ["prompt_id", "row", "weight", "density", "cluster", "x", "y",
                                      "prompt", "n"]  # fmt: skip
    assert len(frame) == 66
    assert frame["weight"].sum() == pytest.approx(1)
    assert frame["n"].tolist() == [*range(60), *range(6)]
    lines = out.splitlines()
    assert lines[0] == "66 rows, 60 different prompts."
    assert lines[1].startswith("Copies: 6 rows (9.1%) repeat an earlier prompt")
    assert lines[2].startswith("Weights: ")
    assert "effective sample size" in lines[2]
    assert any("draws" in line for line in lines[3:])  # what the weights would do
    assert out.endswith(training_lines(Path("weights.parquet"), 60))
    assert "weights.parquet written in " in out
    assert "[weigh] read (" in err
    assert (out + err).count("66 rows") == 1
    assert not list(Path("cache").glob("weigh*"))


def test_json_holds_the_measures_and_nothing_else(weigh):
    status, out, _ = weigh("prompts.jsonl", "--json")
    found = json.loads(out)
    assert (status, found["rows"], found["prompts"], found["repeated"]) == (0, 66, 60, 6)
    assert 0 < found["ess_share"] <= 1
    assert found["opinion"]["case"]
    assert not Path("weights.parquet").exists()


def test_a_report_is_html_by_its_name(weigh):
    status, _, err = weigh("prompts.jsonl", "--report", "report.pdf")
    assert status == 1
    assert "report.pdf does not end in .html" in err


def test_a_report_of_a_file(weigh):
    status, out, err = weigh("prompts.jsonl", "--report", "report.html")
    assert status == 0, err
    page = Path("report.html").read_text()
    assert "report.html written in " in out
    assert "--output weights.parquet writes the weights" in out
    assert "training prompts" in page
    assert "dvc" not in page[page.index("<main") : page.index("Provenance</h2>")].lower()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere.jsonl",), "nowhere.jsonl: no such file\n  -> check the path"),
        ((" ",), "the data have an empty name\n  -> pass a path"),
        (("prompts.jsonl", "--output", "w.txt"), "w.txt ends in none of .parquet, .csv, .jsonl"),
        (("prompts.jsonl", "--column", "text"), "has no column 'text'; the columns are prompt, n"),
        (("prompts.jsonl", "-S", "density.k"), "-S density.k sets nothing"),
        (("prompts.jsonl", "-S", "density.k=x"), "'x' is not an integer"),
        (("prompts.jsonl", "--label", "topic"), "no row has a column 'topic'"),
    ],
)
def test_a_mistake_is_one_clear_line(weigh, words, said):
    status, out, err = weigh(*words)
    assert (status, out) == (1, "")
    assert err.startswith("isodense: error: ")
    assert said in err


def test_neither_the_data_nor_a_project_is_overwritten(weigh, tmp_path):
    before = Path("prompts.jsonl").read_bytes()
    status, _, err = weigh("prompts.jsonl", "--output", "./prompts.jsonl")
    assert (status, Path("prompts.jsonl").read_bytes()) == (1, before)
    assert "prompts.jsonl is, or would be, among the data in prompts.jsonl" in err
    Path("work/prompts").mkdir(parents=True)
    Path("work/prompts/mine.txt").write_text("precious")
    said = weigh("prompts.jsonl", "--work", "work")[2]
    assert "work/prompts is no artifact, and one would take its place" in said
    assert Path("work/prompts/mine.txt").exists()
    assert "prompts.jsonl is not a folder" in weigh("prompts.jsonl", "--work", "prompts.jsonl")[2]
    Path("dvc.yaml").touch()
    assert "is a folder of a project" in weigh("prompts.jsonl", "--work", "data")[2]


@pytest.mark.parametrize("data", ["all", "all/*.jsonl", "./all/"])
def test_no_file_of_a_folder_or_pattern_is_overwritten_or_read_as_data_later(weigh, data):
    Path("all").mkdir()
    before = Path("prompts.jsonl").read_bytes()
    Path("all/a.jsonl").write_bytes(before)
    status, _, err = weigh(data, "--output", "all/a.jsonl")
    assert (status, Path("all/a.jsonl").read_bytes()) == (1, before)
    assert f"all/a.jsonl is, or would be, among the data in {data}" in err
    if "*" not in data:
        assert weigh(data, "--output", "all/weights.parquet")[0] == 1


@pytest.mark.parametrize("option", ["--output=folder.csv", "--report=folder.html"])
def test_a_place_that_cannot_be_written_is_named_before_anything_is_computed(weigh, option):
    Path(option.partition("=")[2]).mkdir()
    status, _, err = weigh("prompts.jsonl", option)
    assert status == 1
    assert err.startswith("isodense: error: no file can be written as folder.")
    assert ": it is a folder\n  -> name another file" in err
    status, _, err = weigh("prompts.jsonl", option.replace("=", "=prompts.jsonl/"))
    assert status == 1
    assert err.startswith("isodense: error: no file can be written as prompts.jsonl/")
    assert ": prompts.jsonl is not a folder" in err


def test_a_missing_encoder_is_named(weigh):
    status, _, err = weigh("prompts.jsonl", "--encoder", "nowhere", model=False)
    assert status == 1
    assert "the encoder nowhere is no folder here" in err


def test_bad_rows_are_counted_where_they_may_be_skipped(weigh):
    with Path("prompts.jsonl").open("a") as stream:
        stream.write('{"prompt": ""}\n')
    assert "prompts.jsonl:67: prompt" in weigh("prompts.jsonl")[2]
    status, out, err = weigh("prompts.jsonl", "--on-bad-row", "skip")
    assert status == 0
    assert out.startswith("66 rows, 60 different prompts; 1 row without a prompt left out.")
    assert "skipped prompts.jsonl:67" in err


@pytest.mark.parametrize("pinned", [True, False])
def test_a_new_text_is_explained_by_the_encoder_that_weigh_kept(
    weigh, encoder, monkeypatch, capsys, pinned
):
    if pinned:  # by default the encoder is a wheel, whose files are kept in the cache
        monkeypatch.setattr("isodense.models.wheel.fetched", lambda *_: nullcontext(encoder))
    status, _, err = weigh("prompts.jsonl", "--work", "kept", model=not pinned)
    assert status == 0, err
    assert read_manifest("kept/encoder", "models")["params"]["source"] == (
        "wheel" if pinned else "folder"
    )
    assert main(["explain", "--data", "kept", "a text that nobody has asked", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "new"
    other = ["--encoder", "nowhere"]
    assert main(["explain", "--data", "kept", "a text that nobody has asked", *other]) == 1
    assert "nowhere is not there" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_done_and_the_next_run_goes_on(encoder, tmp_path):
    environ = {**os.environ, "ISODENSE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    rows = [{"prompt": f"{'egg water ' * 10}{text}"} for text in tiny.texts(2000)]
    write(tmp_path / "prompts.jsonl", rows)
    words = ["prompts.jsonl", "--output", "w.csv", "--encoder", str(encoder), *SMALL]
    command = [sys.executable, "-c", MAIN, "weigh", *words, "-S", "embeddings.rows_per_shard=125"]
    run = subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "cache" / "embeddings").glob("*/rows.npy")):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=300)[1]
    assert run.returncode == 130, said
    assert said.endswith("isodense: interrupted; run it again to go on\n")
    assert "Traceback" not in said
    assert not (tmp_path / "w.csv").exists()
    assert not list((tmp_path / "cache").glob("weigh*"))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/embeddings/*/rows.npy")}
    assert 1 <= len(kept) < 16
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(tmp_path / "w.csv")) == 2000
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_conversations_in_csv_are_parsed_by_the_printed_lines(weigh, tmp_path):
    import datasets

    write(tmp_path / "chats.jsonl", [{"prompt": tiny.user(text)} for text in tiny.texts(60)])
    status, out, err = weigh("chats.jsonl", "--output", "w.csv", "--work", "kept")
    assert status == 0, err
    assert "isodense inspect --data kept" in out
    names = {"json": json, "data": datasets.load_dataset("csv", data_files="w.csv", split="train")}
    exec(next(line for line in out.splitlines() if "json.loads" in line), names)  # noqa: S102 - as printed
    assert names["data"]["prompt"][0] == tiny.user(tiny.texts(60)[0])


@pytest.mark.parametrize(
    "name", [pytest.param("w.parquet", marks=pytest.mark.slow), "w.csv", "w.jsonl"]
)
def test_the_printed_lines_train(weigh, tmp_path, name):
    status, out, err = weigh("prompts.jsonl", "--output", name)
    assert status == 0, err
    lines = out.partition("To train on draws by weight:\n\n")[2]
    assert len([line for line in lines.splitlines() if line]) == 5  # a comment, an import, three
    if name != "w.parquet":  # how the data are read is all that differs
        import datasets

        data = datasets.load_dataset(
            {"w.csv": "csv", "w.jsonl": "json"}[name],
            data_files=name,
            split="train",
            cache_dir="hf",
        )
        assert (
            f'load_dataset("{"csv" if name == "w.csv" else "json"}", data_files="{name}"' in lines
        )
        assert sum(data["weight"]) == pytest.approx(1)
        return
    policy = tiny.policy(tmp_path / "policy")
    script = f"""
import os
os.environ["HF_DATASETS_CACHE"] = "hf"
model = {str(policy)!r}
def reward(completions, **columns):
    assert columns["n"][0] < 60
    return [float(len(one)) for one in completions]
import trl, functools
trl.GRPOConfig = functools.partial(  # a smaller run on a CPU of the same lines
    trl.GRPOConfig, max_steps=1, max_completion_length=4, use_cpu=True, bf16=False, report_to=[])
{lines}
print("TRAINED")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "TRAINED" in done.stdout, done.stderr[-3000:]


# --- without what extras bring --------------------------------------------------------------------


def without(names, code, folder):
    """Run Python code where packages of some names cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(names=set(names)) + code],
        cwd=folder,
        env={**os.environ, "ISODENSE_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_core_needs_no_extra(encoder, tmp_path):
    from isodense.pipeline.extras import EXTRAS

    write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in tiny.texts(20)])
    names = [name for modules in EXTRAS.values() for name in modules]
    assert {"trl", "datasets", "dvc", "bokeh", "matplotlib"} <= set(names)
    names.remove("jinja2")  # torch brings it
    code = f"""
import isodense
from isodense.cli.main import main
for name in isodense.__all__:
    getattr(isodense, name)
try:
    main(["--help"])
except SystemExit as done:
    assert not done.code
words = ["weigh", "prompts.jsonl", "--encoder", {str(encoder)!r}, *{SMALL!r}]
assert main([*words, "--output", "w.parquet"]) == 0
small = dict(encoder={str(encoder)!r}, params={{"embeddings.max_tokens": 64}})
assert len(isodense.draw(isodense.weigh(["red", "green"], **small).weights, 3)) == 3
print("REPORT", main([*words, "--report", "r.html"]), flush=True)
"""
    done = without(names, code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "REPORT 1" in done.stdout
    assert done.stderr.endswith(
        "is not installed\n  -> pip install 'isodense[report]', or 'isodense[all]' for everything\n"
    )
    assert (tmp_path / "w.parquet").exists()


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("isodense.load_weights('https://git.example/team/prompts')", "pipeline"),
        ("isodense.weigh('org/name')", "hub"),
        ("isodense.weigh(['red'], report='r.html')", "report"),
    ],
)
def test_a_missing_extra_is_named_in_python(tmp_path, code, extra):
    names = {"dvc", "dvc_data", "dvc_objects", "datasets", "bokeh", "matplotlib"}
    done = without(names, f"import isodense\n{code}", tmp_path)
    assert done.returncode == 1
    assert f"pip install 'isodense[{extra}]'" in done.stderr
