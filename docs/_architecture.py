"""Draw ``docs/images/architecture.svg`` from the code: ``python docs/_architecture.py``.

Boxes are the packages of ``src/isodense``, with the artifacts that ``dvc.yaml`` lets the stage of
that name read and write. Arrows are imports between packages, as grimp finds them, without those
that follow from others. `PLACES` is the one thing set by hand: a package's layer, and its column.
An import that goes up a layer, or a package without a place, is an error.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import grimp
import yaml

ROOT = Path(__file__).parents[1]
SVG = ROOT / "docs" / "images" / "architecture.svg"

BASE = "pipeline"  # which all others import: drawn as a floor, without arrows
LEGEND = (  # beside the lower layers
    ("stage", "a stage of dvc.yaml: its package, what it reads and writes"),
    ("room", "a package without a stage"),
    ("arrow", "imports (those that follow from others are left out)"),
    ("note", "Most stages also write reports/metrics/<stage>.json."),
)
PLACES = {  # package: (layer from the top, column); each layer may import the ones below it
    "cli": (0, 1.0),
    "doctor": (1, 2.0),
    "preflight": (2, 1.0),
    "weighing": (3, 1.5),
    "experiments": (4, 0.0),
    "report": (4, 3.0),
    "train": (5, 0.0),
    "evaluate": (5, 1.0),
    "inspect": (5, 2.0),
    "difficulty": (6, 0.0),
    "reward": (7, 0.0),
    "density": (7, 1.5),
    "sampling": (8, 1.0),
    "map": (8, 3.0),
    "neighbors": (9, 1.0),
    "embeddings": (10, 1.0),
    "models": (11, 1.0),
    "download": (12, 0.0),
    "prompts": (12, 1.0),
    "synthetic": (13, 0.0),
    BASE: (14, 0.0),
}

WIDTH, GAP, MARGIN, LINE, TITLE, BETWEEN = 290, 26, 44, 16, 26, 30  # pixels
COLUMNS = 4
STYLE = """\
text { font: 12px system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #24333a }
.title { font-size: 19px; font-weight: 600 }
.name { font: 600 14px ui-monospace, Menlo, Consolas, monospace }
.what { fill: #4d5f68 }
.verb { fill: #4d5f68; font-style: italic }
.stage { fill: #dff2ef; stroke: #00897b; stroke-width: 1.4 }
.room { fill: #ffffff; stroke: #9aa8ae; stroke-width: 1.2; stroke-dasharray: 5 3 }
.floor { fill: #eceff0; stroke: #9aa8ae; stroke-width: 1.2 }
.arrow { fill: none; stroke: #546e7a; stroke-width: 1.5 }
.head { fill: #546e7a }
.sheet { fill: #fbfaf6; stroke: #d9d5c8 }"""


# --- what the code says ---------------------------------------------------------------------------


def imports() -> dict[str, set[str]]:
    """Return which packages of ``isodense`` each of them imports, itself left out."""
    graph = grimp.build_graph("isodense", cache_dir=None)
    found: dict[str, set[str]] = {name: set() for name in PLACES}
    for module in sorted(graph.modules):
        for other in sorted(graph.find_modules_directly_imported_by(module)):
            pair = [name.split(".")[1] for name in (module, other) if "." in name]
            if len(pair) == 2 and pair[0] != pair[1]:
                _check(*pair)
                found[pair[0]].add(pair[1])
    return found


def _check(package: str, imported: str) -> None:
    for name in (package, imported):
        if name not in PLACES:
            raise SystemExit(f"the package {name!r} has no place in PLACES of {__file__}")
    if PLACES[package][0] >= PLACES[imported][0]:
        raise SystemExit(f"{package} imports {imported}, which is no layer below it in PLACES")


def reduced(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return the edges of a graph without cycles that do not follow from others.

    Examples
    --------
    >>> reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    [('a', 'b'), ('b', 'c')]
    """

    def below(name: str) -> set[str]:
        return edges[name].union(*(below(other) for other in edges[name]))

    return [
        (name, other)
        for name in edges
        for other in sorted(edges[name])
        if not any(other in below(between) for between in edges[name] - {other})
    ]


def what(package: str) -> str:
    """Return the first line of a package's docstring, without the name of its stage."""
    path = ROOT / "src" / "isodense" / package / "__init__.py"
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    text = re.sub(r"^Stage ``\w+``: ", "", doc.partition("\n")[0])
    return text[:1].upper() + text[1:]


def artifacts(stage: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the artifacts that a stage reads, in short, and the paths that it writes."""
    deps = [str(dep) for dep in stage.get("deps", ())]
    users = ("data/raw", "models/raw", "rewards")  # folders of the user's files
    reads = [f"{dep}/" for dep in deps if dep in users]
    made = [dep for dep in deps if dep not in users and re.fullmatch(r"(data|models)/\w+", dep)]
    reads += [dep.partition("/")[2] for dep in made]
    reads += ["reports"] if any(dep.startswith("reports/") for dep in deps) else []
    outs = [next(iter(out)) if isinstance(out, dict) else out for out in stage.get("outs", ())]
    several = Counter(str(Path(out).parent) for out in outs)
    short = (folder if several[folder := str(Path(out).parent)] > 2 else str(out) for out in outs)
    return reads, list(dict.fromkeys(short))


# --- the picture ----------------------------------------------------------------------------------


class Box:
    """A package: its lines of text, and where it is."""

    def __init__(self, name: str, stage: dict[str, Any] | None) -> None:
        self.name, self.is_stage, self.top = name, stage is not None, 0.0
        self.lines = [("what", "", text) for text in _wrapped(what(name))]
        for verb, words in zip(("reads", "writes"), artifacts(stage or {}), strict=True):
            texts = _wrapped(", ".join(words), 36)
            self.lines += [("", "" if number else verb, text) for number, text in enumerate(texts)]
        self.height = TITLE + LINE * len(self.lines) + 8

    @property
    def left(self) -> float:
        """The left edge."""
        return MARGIN + PLACES[self.name][1] * (WIDTH + GAP)

    @property
    def middle(self) -> float:
        """The middle, from the left."""
        return self.left + WIDTH / 2

    def svg(self) -> Iterator[str]:
        """Yield the box and its text."""
        kind = "stage" if self.is_stage else "room"
        yield _rectangle(kind, self.left, self.top, WIDTH, self.height)
        yield _text("name", self.left + 12, self.top + 19, self.name)
        for number, (style, verb, text) in enumerate(self.lines):
            y = self.top + TITLE + LINE * number + 11
            yield _text("verb", self.left + 12, y, verb) if verb else ""
            yield _text(style, self.left + (12 if style else 54), y, text)


def draw() -> str:
    """Return the picture as SVG."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    boxes = {name: Box(name, stages.get(name)) for name in PLACES if name != BASE}
    y = 84.0
    for layer in range(PLACES[BASE][0]):
        row = [box for box in boxes.values() if PLACES[box.name][0] == layer]
        for box in row:
            box.top = y
        y += max(box.height for box in row) + BETWEEN
    arrows = [pair for pair in reduced(imports()) if BASE not in pair]
    width = 2 * MARGIN + COLUMNS * WIDTH + (COLUMNS - 1) * GAP
    shown = [
        *_title(),
        *(part for pair in arrows for part in _arrow(boxes, *pair)),
        *(part for box in boxes.values() for part in box.svg()),
        *_legend(boxes),
        *_floor(y, width),
    ]
    return _page(width, int(y) + 78, [part for part in shown if part])


def _title() -> Iterator[str]:
    yield _text("title", MARGIN, 42, "isodense: one package per stage, in layers")
    text = "Each package may import those below it. Data goes the other way: up, from the sources."
    yield _text("what", MARGIN, 64, text)


def _floor(y: float, width: float) -> Iterator[str]:
    yield _rectangle("floor", MARGIN, y, width - 2 * MARGIN, 48)
    yield _text("name", MARGIN + 12, y + 20, BASE)
    yield _text("what", MARGIN + 12, y + 37, f"{what(BASE)} All packages stand on it.")


def _legend(boxes: dict[str, Box]) -> Iterator[str]:
    x, y = MARGIN + 2.0 * (WIDTH + GAP) + 60, boxes["embeddings"].top + 20
    for kind, text in LEGEND:
        if kind == "arrow":
            yield f'<path class="arrow" d="M{x:g} {y + 8:g}h22"/>'
            yield f'<path class="head" d="M{x + 30:g} {y + 8:g}l-10 -5v10z"/>'
        elif kind != "note":
            yield _rectangle(kind, x, y, 30, 17)
        yield _text("what", x + (0 if kind == "note" else 42), y + 13, text)
        y += 30


def _arrow(boxes: dict[str, Box], name: str, other: str) -> Iterator[str]:
    """Yield a curve from the bottom of a box to the top of another, around those between."""
    upper, lower = boxes[name], boxes[other]
    x1, y1 = upper.middle + _shift(upper, lower), upper.top + upper.height
    x2, y2 = lower.middle + _shift(lower, upper), lower.top - 9
    between = [
        box
        for box in boxes.values()
        if PLACES[name][0] < PLACES[box.name][0] < PLACES[other][0]
        and min(x1, x2) - 20 < box.left + WIDTH
        and box.left < max(x1, x2) + 20
    ]
    if between:  # along the left edge of the picture
        side, y1 = MARGIN / 2, upper.top + upper.height / 2
        x2, y2 = lower.left - 9, lower.top + lower.height / 2
        path = (
            f"M{upper.left:g} {y1:g}H{side + 14:g}Q{side:g} {y1:g} {side:g} {y1 + 14:g}"
            f"V{y2 - 14:g}Q{side:g} {y2:g} {side + 14:g} {y2:g}H{x2:g}"
        )
        yield f'<path class="arrow" d="{path}"/>'
        yield f'<path class="head" d="M{x2 + 9:g} {y2:g}l-10 -5v10z"/>'
        return
    bend = max(18.0, (y2 - y1) * 0.5)
    yield (
        f'<path class="arrow" d="M{x1:g} {y1:g}'
        f'C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}"/>'
    )
    yield f'<path class="head" d="M{x2:g} {y2 + 9:g}l-5 -10h10z"/>'


def _shift(box: Box, other: Box) -> float:
    """Return how far from the middle of a box an arrow begins, so that arrows stay apart."""
    return max(-1.0, min(1.0, (other.middle - box.middle) / WIDTH)) * WIDTH / 4


def _wrapped(text: str, width: int = 40) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _text(style: str, x: float, y: float, text: str) -> str:
    name = f' class="{style}"' if style else ""
    return f'<text{name} x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _rectangle(style: str, x: float, y: float, width: float, height: float) -> str:
    size = f'width="{width:g}" height="{height:g}" rx="7"'
    return f'<rect class="{style}" x="{x:g}" y="{y:g}" {size}/>'


def _page(width: int, height: int, parts: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        'aria-label="The packages of isodense in layers, their imports and their artifacts">'
    )
    sheet = (
        f'<rect class="sheet" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="12"/>'
    )
    return "\n".join([head, f"<style>\n{STYLE}\n</style>", sheet, *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    SVG.write_text(draw(), encoding="utf-8")
