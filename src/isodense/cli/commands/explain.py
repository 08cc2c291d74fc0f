"""``isodense explain``: why a prompt has the weight it has, or what a new prompt would get."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from isodense.cli.commands._arguments import add_json, positive, print_json
from isodense.pipeline.layout import ARTIFACTS

ENCODER = ARTIFACTS["encoder"].path
ABOUT = """Show the weight of a prompt and where it comes from, or that of a new prompt.

The prompt is named by its id, the start of one, its text, the beginning of its text where no other
prompt begins so, or its conversation as a JSON list of messages; - reads it from standard input. A
new prompt is embedded and compared with all training prompts."""


def add(commands: Any) -> None:
    """Add the command."""
    why = commands.add_parser(
        "explain",
        help=ABOUT.splitlines()[0],
        description=ABOUT,
        epilog="example: isodense explain 'How do I boil an egg?'",
    )
    why.add_argument("prompt", help="id, start of an id or a text, text, JSON messages, or -")
    whole = "it is a whole text, whatever it looks like and whichever prompt begins so"
    why.add_argument("--text", action="store_true", help=whole)
    shown = "neighbours and near-duplicates to show at most (10)"
    why.add_argument("--neighbors", type=positive, default=10, metavar="N", help=shown)
    why.add_argument("--width", type=positive, metavar="N", help="columns of a text")
    add_json(why)
    where = "folder of the artifacts, or what `isodense weigh --work` kept (data)"
    why.add_argument("--data", type=Path, default=Path("data"), help=where)
    model = f"for a new prompt (encoder in --data, where weigh kept it, or {ENCODER})"
    why.add_argument("--encoder", type=Path, help=model)
    why.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the explanation."""
    from isodense.inspect.explain import Folders, explain

    data: Path = args.data
    kept = data / "encoder"
    folders = Folders(
        data / "prompts",
        data / "neighbors",
        data / "density",
        data / "embeddings",
        args.encoder or (kept if kept.is_dir() else ENCODER),
        data / "difficulty",
    )
    query = _standard_input() if args.prompt == "-" else args.prompt
    report = explain(query, folders, args.neighbors, args.text)
    if args.json:
        print_json(report)
    else:
        sys.stdout.write(_described(report, args.width))


def _standard_input() -> str:
    from isodense.pipeline.errors import IsodenseError

    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"standard input is not UTF-8 (byte {error.start})"
        raise IsodenseError(message, "convert it") from None


def _described(report: dict[str, Any], width: int | None) -> str:
    from rich.text import Text

    from isodense.pipeline.terminal import paragraph, rendered, table
    from isodense.report.prompts import columns_line

    density, weight = report["density"], report["weight"]
    columns = columns_line(report["prompt"])
    begins = "The one prompt that begins with this text (--text takes it for a whole one):\n"
    parts = [
        begins if report["beginning"] else "",
        rendered(Text(_title(report), "bold", no_wrap=True, overflow="ignore")),
        rendered(paragraph(report["prompt"]["text"], width, indent=2), indent=2),
        rendered(paragraph(columns, width, indent=2), indent=2) if columns else "",
        "\n",
        _weight_line(report["kind"], weight),
        _kind_line(report["known_kind"]),
        _difficulty_lines(report["difficulty"]),
        f"density     as of {density['distinct_prompts']:.1f} distinct prompts in the same place, "
        f"itself included; denser than {density['denser_than']:.0%} of the training prompts\n",
        _why_line(report),
        _near_duplicates(report["near_duplicates"], report["kind"], width),
        _paraphrases(report["paraphrases"]),
    ]
    if report["neighbors"]:
        rows = [
            (
                f"{near['distance']:.3f}",
                f"{near['cosine']:.3f}",
                "duplicate" if near["near_duplicate"] else f"{near['counts']:.2f}",
                f"{near['weight_over_mean']:.2f}",
                near["text"],
            )
            for near in report["neighbors"]
        ]
        *numbers, text = ("distance", "cosine", "counts", "weight", "nearest training prompts")
        shown = table((*numbers, text), rows, left=(text,), text=text, width=width)
        parts += ["\n", rendered(shown, indent=2)]
    return "".join(parts)


def _title(report: dict[str, Any]) -> str:
    from isodense.pipeline.terminal import printable

    prompt = report["prompt"]
    if report["kind"] == "new":
        return f"a new prompt, not in the set (its id would be {prompt['id']})"
    split = {"training": "training prompt", "heldout": "held-out prompt"}[report["kind"]]
    times = "1 occurrence" if prompt["count"] == 1 else f"{prompt['count']} occurrences"
    sources = ", ".join(f"{name} {count}" for name, count in prompt["sources"].items())
    label = f"; label {prompt['label']}" if prompt.get("label") else ""
    return printable(f"{split} {prompt['id']}, {times} ({sources}){label}")


def _weight_line(kind: str, weight: dict[str, Any] | None) -> str:
    if kind == "heldout":
        return "weight      none: held-out prompts are never drawn for training\n"
    if weight is None:
        return (
            "weight      not known: the density alone does not say it with this density.method, or "
            "density.balance_by\n"
        )
    would = "would be " if kind == "new" else ""
    return (
        f"weight      {would}{weight['over_mean']:.2f} times the mean, rank {weight['rank']} of "
        f"{weight['of']}: {weight['draws_per_epoch']:.2f} draws expected in an epoch of "
        f"{weight['of']} draws\n"
    )


def _kind_line(found: dict[str, Any] | None) -> str:
    """Return what kind the prompt is of, and that kind's share; nothing without balance_by."""
    if found is None:
        return ""
    from isodense.pipeline.terminal import printable

    draws, prompts = found["weighted"], found["uniform"]
    name = printable(found["name"]) or "(none)"
    return (
        f"kind        {found['by']} {name}: {draws:.1%} of the draws by density.balance_by, for "
        f"{prompts:.1%} of the prompts, so its weights are {draws / prompts:.2f} times the mean\n"
    )


def _difficulty_lines(found: dict[str, Any] | None) -> str:
    """Return both factors of ``train.sampling: density+difficulty``; nothing without pass rates."""
    if found is None:
        return ""
    made = found["completions"]
    known = f"solved {found['solved']} of {made} times before training" if made else "not known"
    return (
        f"difficulty  {known}: pass rate {found['pass_rate']:.2f}, smoothed, signal "
        f"{found['signal']:.2f}, {found['over_mean']:.2f} times the mean\n"
        f"            weight × signal: {found['product_over_mean']:.2f} times the mean "
        "(train.sampling: density+difficulty, without its floor)\n"
    )


def _why_line(report: dict[str, Any]) -> str:
    why, count = report["why"], report["density"]["distinct_prompts"]
    line = (
        f"            1 for itself, {why['neighbors']:.1f} from its {why['nearest']} nearest, "
        f"{why['beyond']:.1f} estimated to lie beyond them"
    )
    if abs(why["own_count"] - count) > 0.05:
        line += f" ({why['own_count']:.1f} in all; its duplicate cluster has {count:.1f})"
    return line + "\n"


def _near_duplicates(found: dict[str, Any], kind: str, width: int | None) -> str:
    from isodense.pipeline.terminal import line, rendered

    number, radius = found["number"], f"within {found['radius']:.3f}"
    if not number:
        return f"duplicates  none: no training prompt lies {radius}\n"
    shared = {
        "training": f"the {number + 1} of them share one weight",
        "heldout": "it has their density",
        "new": f"the {number + 1} of them would share one weight",
    }[kind]
    plural = "near-duplicate" if number == 1 else "near-duplicates"
    shown = [rendered(line(one["text"], width), indent=12) for one in found["prompts"]]
    more = number - len(shown)
    last = f"            and {more} more\n" if more else ""
    return f"duplicates  {number} {plural}, {radius} or chained: {shared}\n{''.join(shown)}{last}"


def _paraphrases(found: dict[str, Any] | None) -> str:
    """Return with how many others the weight is shared by degree; nothing without the option."""
    if found is None:
        return ""
    return (
        f"paraphrases {found['niche']:.1f} prompts share one weight: itself, and others within "
        f"{found['reach']:.3f} the more the closer they are\n"
    )
