"""The report's size, the seconds to write it, and the seconds until a browser shows it.

Prompts are synthetic sentences around seeded cluster centres, as many as asked; nine in ten
neighbours are random prompts of the same cluster, at distances like those of clusters.

Run ``python benchmarks/report.py``; chromium is driven headless, with software rendering.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.browser import Page, browser  # noqa: E402

from isodense.density.artifact import publish  # noqa: E402
from isodense.density.estimate import estimate  # noqa: E402
from isodense.density.params import DensityParams  # noqa: E402
from isodense.map.reader import COORDINATES  # noqa: E402
from isodense.neighbors.graph import (  # noqa: E402
    DISTANCES,
    HELDOUT_DISTANCES,
    HELDOUT_INDICES,
    INDICES,
    Graph,
)
from isodense.pipeline import params  # noqa: E402
from isodense.pipeline.artifact import content_sha256, ids_sha256, publishing, write_manifest  # noqa: E402
from isodense.pipeline.stage import peak_rss  # noqa: E402
from isodense.prompts.deduplicate import write  # noqa: E402
from isodense.report.page import Sources, write_report  # noqa: E402

WORDS = (
    "the of and convert cups litres how do you boil an egg paris capital write poem about cats "
    "code python sort list explain relativity simple terms my dog ate homework what is best way "
    "learn guitar recipe for soup translate into french email boss late train ticket price weather"
).split()
K = 20
SAME = 0.9  # of the neighbours that are of the same cluster


def make(folder: Path, count: int) -> Sources:
    """Write the artifacts that the report reads."""
    rng = np.random.default_rng(count)
    cluster = rng.integers(0, max(2, count // 500), count)
    centres = rng.normal(size=(cluster.max() + 1, 2)) * 12
    coordinates = (centres[cluster] + rng.normal(size=(count, 2))).astype(np.float32)
    ids = [f"{number:032x}" for number in rng.integers(0, 2**62, count)]
    heldout = rng.random(count) < 0.1
    write_prompts(folder / "prompts", ids, heldout, cluster, rng)
    with publishing(folder / "map") as made:
        np.save(made / COORDINATES, coordinates)
        write_manifest(made, "map", rows=count, ids_sha256=ids_sha256(ids))
    apart = [
        [name for name, held in zip(ids, heldout, strict=True) if held == kept]
        for kept in (False, True)
    ]
    write_graph(folder, *apart, cluster[~heldout], rng)
    return Sources(
        folder / "prompts", folder / "density", folder / "neighbors", folder / "map"
    )  # fmt: skip


def write_prompts(
    folder: Path, ids: list[str], heldout: np.ndarray, cluster: np.ndarray, rng: np.random.Generator
) -> None:
    """Write sentences of 4 to 39 random words."""
    lengths = rng.integers(4, 40, len(ids))
    words = np.array(WORDS * 2)
    rows = (
        {
            "id": name,
            "text": " ".join(words[rng.integers(0, 30, length) + number % 48]),
            "count": int(length % 3 + 1),
            "sources": {"synthetic": 1},
            "split": "heldout" if held else "train",
            "label": f"cluster {number}",
        }
        for name, length, held, number in zip(ids, lengths, heldout, cluster, strict=True)
    )
    with publishing(folder) as made:
        write(rows, {}, None, made)


def write_graph(
    folder: Path,
    train: list[str],
    heldout: list[str],
    cluster: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Write a random neighbour graph and the density that the stage finds in it."""

    def random(rows: int) -> Graph:
        distances = np.sort(rng.normal(0.6, 0.12, (rows, K)).clip(0.02).astype(np.float32), axis=1)
        return Graph(rng.integers(0, len(train), (rows, K)).astype(np.int32), distances)

    graph, others = random(len(train)), random(len(heldout))
    order, sizes = np.argsort(cluster, kind="stable"), np.bincount(cluster)
    start = np.cumsum(sizes) - sizes
    inside = start[cluster, None] + (rng.random((len(train), K)) * sizes[cluster, None]).astype(int)
    near = rng.random((len(train), K)) < SAME
    graph.indices[near] = order[inside[near]]
    arrays = {
        INDICES: graph.indices,
        DISTANCES: graph.distances,
        HELDOUT_INDICES: others.indices,
        HELDOUT_DISTANCES: others.distances,
    }
    hashes = {"ids_sha256": ids_sha256(train), "heldout_ids_sha256": ids_sha256(heldout)}
    with publishing(folder / "neighbors") as made:
        for name, array in arrays.items():
            np.save(made / name, array)
        manifest = write_manifest(made, "neighbors", rows=len(train), k=K, dim=384, **hashes)
    density = params.load(ROOT / "params.yaml", "density", DensityParams)
    density = density.model_copy(update={"k": K})
    found = estimate(graph, density)
    inputs = content_sha256(manifest)
    nothing = np.zeros(len(heldout))
    publish(found, nothing, nothing > 0, train, density, {}, manifest, inputs, folder / "density")


def opened(path: Path) -> dict[str, float]:
    """Return seconds until the browser shows the map, until all, and of a hover and a zoom."""
    with browser() as chromium:
        start = time.perf_counter()
        page = Page(chromium, path, viewport={"width": 1200, "height": 900})
        page.wait("document.getElementById('map').dataset.drawn", 120)
        seconds = {"map": time.perf_counter() - start}
        page.wait("document.documentElement.dataset.ready", 120)
        seconds["all"] = time.perf_counter() - start
        seconds["hover"] = hovered(page)
        start = time.perf_counter()
        page.tab.mouse.down()
        page.tab.mouse.up()
        page.tab.mouse.wheel(0, -400)
        page.tab.evaluate("new Promise(r => requestAnimationFrame(() => setTimeout(r, 0)))")
        seconds["zoom"] = time.perf_counter() - start
        seconds["search"] = looked_for(page)
        seconds["lasso"] = encircled(page)
        if page.faults:
            raise SystemExit("\n".join(page.faults))
    return seconds


def looked_for(page: Page) -> float:
    """Return the seconds from typing a word to the prompts found, the page's pause included."""
    start = time.perf_counter()
    page.tab.fill("#map-search", "egg")
    page.wait("!document.getElementById('map-list').hidden")
    page.tab.evaluate("new Promise(r => requestAnimationFrame(() => setTimeout(r, 0)))")
    return time.perf_counter() - start


def encircled(page: Page) -> float:
    """Return the seconds from the end of a lasso of 60 corners to the prompts in it."""
    page.tab.locator("#map-clear").click()
    page.tab.evaluate("document.getElementById('map').scrollIntoView({block: 'center'})")
    page.tab.locator("[title='Lasso Select']").click()
    box = page.tab.locator("#map").bounding_box()
    angle = np.linspace(0, 6, 60)
    x = box["x"] + box["width"] * (0.5 + 0.3 * np.cos(angle))
    y = box["y"] + box["height"] * (0.5 + 0.3 * np.sin(angle))
    page.tab.mouse.move(x[0], y[0])
    page.tab.mouse.down()
    for each in zip(x[1:], y[1:], strict=True):
        page.tab.mouse.move(*each)
    start = time.perf_counter()
    page.tab.mouse.up()
    page.wait("!document.getElementById('map-list').hidden")
    page.tab.evaluate("new Promise(r => requestAnimationFrame(() => setTimeout(r, 0)))")
    return time.perf_counter() - start


def hovered(page: Page) -> float:
    """Return the seconds from a movement to a prompt on the map to its tooltip."""
    page.tab.evaluate("document.getElementById('map').scrollIntoView({block: 'center'})")
    box = page.tab.locator("#map").bounding_box()
    coordinates = np.random.default_rng(0).uniform(0.1, 0.9, (2000, 2))
    for x, y in coordinates:
        start = time.perf_counter()
        page.tab.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
        page.tab.evaluate("new Promise(r => requestAnimationFrame(() => setTimeout(r, 0)))")
        if page.tab.locator(".tip").count():
            return time.perf_counter() - start
    raise SystemExit("no prompt was shown")


def main() -> None:
    """Print a row per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 1_000_000])
    args = parser.parse_args()
    print(f"python {platform.python_version()}, {platform.machine()}\n")
    print("| prompts | write, s | MB | map shown, s | all shown, s | hover, s | zoom, s "
          "| search, s | lasso, s |")  # fmt: skip
    print("| ---: " * 9 + "|")
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            sources = make(Path(scratch), size)
            page = Path(scratch) / "report.html"
            start = time.perf_counter()
            write_report(sources, page, Path(scratch) / "images")
            wrote = time.perf_counter() - start
            size_mb = page.stat().st_size / 1e6
            seen = opened(page)
        times = " | ".join(f"{value:.2f}" for value in seen.values())
        print(f"| {size:,} | {wrote:.1f} | {size_mb:.1f} | {times} |", flush=True)
    print(f"\npeak memory {peak_rss() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
