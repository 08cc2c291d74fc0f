"""``isodense verify``: compare artifacts with their manifests."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from isodense.cli.commands._arguments import add_json, positive, print_json
from isodense.pipeline.artifact import MANIFEST, read_manifest, verify_files
from isodense.pipeline.errors import ArtifactError
from isodense.pipeline.layout import ARTIFACTS

REPULL = "run `dvc repro embeddings`, or `dvc pull models` for the model it was made with"


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "verify",
        help=run.__doc__,
        description=run.__doc__,
        epilog="example: isodense verify data/density data/embeddings, or, after `dvc repro`: "
        "isodense verify --against HEAD",
    )
    parser.add_argument("artifacts", type=Path, nargs="*", help="artifact folders")
    than = "compare what the stages made here with what this commit pins: same, drifted, different"
    parser.add_argument("--against", metavar="REV", help=than)
    again = "embed this many prompts of an embeddings artifact again and compare"
    parser.add_argument("--recompute", type=positive, metavar="N", help=again)
    parser.add_argument(
        "--prompts", type=Path, default=ARTIFACTS["prompts"].path, help="their prompts"
    )
    parser.add_argument(
        "--encoder", type=Path, default=ARTIFACTS["encoder"].path, help="their encoder"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compare every file of the artifacts with their manifests."""
    if not args.artifacts and not args.against:
        hint = "name artifact folders, or a commit with --against"
        raise ArtifactError("nothing to verify", hint)
    found: dict[str, Any] = {"stages": [], "artifacts": []}
    if args.against:
        from isodense.cli.against import against

        for stage, verdict in against(args.against):
            found["stages"].append({"stage": stage, "verdict": verdict})
            _say(args, f"{stage:<11} {verdict}")
    for folder in args.artifacts:
        found["artifacts"].append(_verified(folder, args))
    if args.json:
        print_json(found)
    strangers = [one["folder"] for one in found["artifacts"] if one.get("other_model")]
    if strangers:
        message = f"{', '.join(strangers)} was not made by the model in {args.encoder}"
        raise ArtifactError(message, REPULL)


def _verified(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return what an artifact is, its files being those of its manifest."""
    kind = _kind(folder)
    manifest = read_manifest(folder, kind)
    verify_files(folder, manifest)
    found = {"folder": str(folder), "kind": kind, "files": len(manifest["files"])}
    _say(args, f"{folder}: {kind}, {found['files']} files as its manifest says")
    if args.recompute and kind == "embeddings":
        from isodense.cli.verify import recompute

        verdict = recompute(folder, args.prompts, args.encoder, args.recompute)
        count = min(args.recompute, manifest["rows"])
        _say(args, f"{folder}: {count} prompts embedded again: {verdict}")
        other = verdict.startswith("different")
        found |= {"recomputed": count, "verdict": verdict, "other_model": other}
    return found


def _say(args: argparse.Namespace, line: str) -> None:
    """Print a line as it comes, unless JSON is asked for, which comes at the end."""
    if not args.json:
        sys.stdout.write(f"{line}\n")


def _kind(folder: Path) -> str:
    """Return which stage made the artifact, from its manifest."""
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        message = f"{folder} is not an artifact: it has no readable {MANIFEST}"
        raise ArtifactError(message, "name a folder such as data/density") from None
