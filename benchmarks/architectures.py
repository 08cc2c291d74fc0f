"""Which architectures each stage computes with, tried on tiny checkpoints with random weights.

Usage
-----
python benchmarks/architectures.py                   # all, as a Markdown table; two minutes
python benchmarks/architectures.py qwen3_next gpt2   # these model types
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests import architectures  # noqa: E402
from tests.architecture_trials import STAGES  # noqa: E402
from transformers import __version__ as transformers_version  # noqa: E402
from transformers.utils import logging  # noqa: E402
from trl import __version__ as trl_version  # noqa: E402

from isodense.models.inference.backbone import FAILURES  # noqa: E402
from isodense.pipeline.errors import IsodenseError  # noqa: E402


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="model types; all by default")
    names = parser.parse_args().names or list(architectures.ALL)
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(f"transformers {transformers_version}, TRL {trl_version}\n")
    print(f"| model types | {' | '.join(STAGES)} |\n|{' --- |' * (len(STAGES) + 1)}")
    for group in architectures.GROUPS.values():
        alike: dict[tuple[str, ...], list[str]] = {}
        for name in (name for name in group if name in names):
            alike.setdefault(outcomes(name), []).append(name)
        for said, kinds in alike.items():
            print(f"| {', '.join(kinds)} | {' | '.join(said)} |", flush=True)


def outcomes(name: str) -> tuple[str, ...]:
    """Return what each stage says of a model type."""
    with tempfile.TemporaryDirectory() as root:
        folder = architectures.checkpoint(Path(root) / name, name)
        return tuple(outcome(stage, folder) for stage in STAGES)


def outcome(stage: str, folder: Path) -> str:
    """Return "yes", or why not."""
    try:
        STAGES[stage](folder)
    except AssertionError:
        return "**wrong values**"
    except IsodenseError as error:
        return "no: " + error.message.replace(str(folder), "it").splitlines()[0]
    except FAILURES as error:
        return f"no: {type(error).__name__}: {error}".splitlines()[0]
    return "yes"


if __name__ == "__main__":
    main()
