"""A real bash completes the commands, options and files of ``isodense``."""

from __future__ import annotations

import subprocess

import pytest

from isodense.cli.main import main


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "isodense"
    with pytest.MonkeyPatch.context() as patch:
        written: list[str] = []
        patch.setattr("sys.stdout.write", written.append)
        assert main(["completion", "bash"]) == 0
    path.write_text("".join(written))
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["wei"], "weigh"),
        (["weigh", "--on-b"], "--on-bad-row"),
        (["weigh", "--on-bad-row", "s"], "skip"),
        (["weigh", "prompts.js"], "prompts.jsonl"),
        (["verify", "data/den"], "data/density"),
        (["report", "--output", "prom"], "prompts.jsonl"),
    ],
)
def test_a_word_is_completed(script, tmp_path, words, expected):
    (tmp_path / "prompts.jsonl").touch()
    (tmp_path / "data/density").mkdir(parents=True)
    line = f"""
        source {script}
        function=$(complete -p isodense | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        COMP_WORDS=(isodense {" ".join(words)}) COMP_CWORD={len(words)}
        $function
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [expected], done.stderr
