"""The command line shows and checks what the stages wrote."""

from __future__ import annotations

import numpy as np
import pytest

from isodense.artifacts import publishing, write_manifest
from isodense.cli import main
from isodense.prompts import PromptsParams, publish
from isodense.promptset import load_prompts
from tests.test_prompts import pair
from tests.tiny import user


@pytest.fixture
def flags(tmp_path):
    publish([pair(user(f"prompt {i}")) for i in range(30)], PromptsParams(0.1), "0", tmp_path / "p")
    train = load_prompts(tmp_path / "p").split("train")
    weights = np.arange(1, len(train) + 1, dtype=np.float32)
    with publishing(tmp_path / "d") as scratch:
        np.save(scratch / "density_weights.npy", weights / weights.sum())
        np.save(scratch / "density.npy", -weights)
        np.save(scratch / "prompt_ids.npy", np.array(train.ids, dtype="S32"))
        write_manifest(scratch, "density", rows=len(train), ids_sha256=train.ids_sha256)
    return ["--density", str(tmp_path / "d"), "--prompts", str(tmp_path / "p")], train


def test_inspect_lists_both_ends(flags, capsys):
    arguments, train = flags
    assert main(["inspect", "--top", "1", *arguments]) == 0
    out = capsys.readouterr().out
    assert f"{len(train)} training prompts, effective sample size" in out
    assert (
        out.index(train.texts[-1]) < out.index("least weighted") < out.index(train.texts[0] + "\n")
    )


def test_verify_names_a_damaged_file(flags, capsys):
    folder = flags[0][1]
    assert main(["verify", folder]) == 0
    assert "density, 3 files" in capsys.readouterr().out
    path = f"{folder}/density.npy"
    with open(path, "r+b") as stream:  # noqa: PTH123
        stream.seek(-1, 2)
        stream.write(b"!")
    assert main(["verify", folder]) == 1
    assert "density.npy is damaged" in capsys.readouterr().err
    assert main(["verify", folder + "/none"]) == 1
    assert "is not an artifact" in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "isodense inspect" in capsys.readouterr().out
