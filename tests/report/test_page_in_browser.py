"""The report in a real browser: drawn, read by pointing, silent, and nobody's to hijack."""

from __future__ import annotations

import json
import re
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from isodense.map.reader import COORDINATES
from isodense.pipeline.artifact import ids_sha256, publishing, write_manifest
from isodense.report.page import Sources, write_report
from tests.browser import PHONE, Page, browser
from tests.report.test_page import ASIDE, HELD, TRAIN, everything, rows, write_artifacts
from tests.tables import write_prompts
from tests.weights import write_weights

DESK = {"viewport": {"width": 1100, "height": 900}}
READY = "document.documentElement.dataset.ready"


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(everything(folder), folder / "index.html")
    return folder / "index.html"


@pytest.fixture(scope="module")
def desk(chromium, path):
    page = Page(chromium, path, color_scheme="light", **DESK)
    page.wait(READY)
    return page


def pixels(png: bytes) -> np.ndarray:
    """Return the pixels of a screenshot, of shape (height, width, 3 or 4), without its filters."""
    width, height, _, kind = struct.unpack(">IIBB", png[16:26])
    depth = {2: 3, 6: 4}[kind]
    packed, at = b"", 8
    while at < len(png):
        size, name = struct.unpack(">I4s", png[at : at + 8])
        packed += png[at + 8 : at + 8 + size] if name == b"IDAT" else b""
        at += 12 + size
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * depth)
    return rows[:, 1:].reshape(height, width, depth)


def color_of(page: Page, selector: str) -> str:
    return page.tab.evaluate(
        f"getComputedStyle(document.querySelector('{selector}')).backgroundColor"
    )


def frame(page: Page) -> dict[str, float]:
    """Bring the map into view and return its box."""
    page.tab.evaluate("document.getElementById('map').scrollIntoView({block: 'center'})")
    return page.tab.locator("#map").bounding_box()


SCREEN = """([id, x, y]) => {
  const map = [...Bokeh.index].find((view) => document.getElementById(id).contains(view.el));
  const canvas = map.canvas_view.el.getBoundingClientRect();
  return [canvas.x + map.frame.x_scale.compute(x), canvas.y + map.frame.y_scale.compute(y)];
}"""


def place(page: Page, row: int) -> list[float]:
    """Return where on the screen a prompt is."""
    return page.tab.evaluate(SCREEN, ["map", row % 6, row // 6])


def pointed_at(page: Page, row: int) -> str:
    """Point at a prompt on the map and return what pops up."""
    frame(page)
    return popped_up(page, *place(page, row))


def popped_up(page: Page, x: float, y: float) -> str:
    """Move the pointer to a place on the screen and return what pops up."""
    page.tab.mouse.move(x - 40, y - 40)
    page.tab.mouse.move(x, y, steps=3)
    for _ in range(40):
        tips = page.tab.locator(".tip:visible:not(#map-prompt *)")
        if tips.count():
            return tips.first.inner_text()
        page.tab.wait_for_timeout(50)
    raise AssertionError(f"nothing pops up at {x}, {y}")


def test_map_and_charts_are_drawn(desk):
    assert desk.tab.evaluate("document.getElementById('map').dataset.drawn") == "points"
    frame(desk)
    blank = pixels(desk.tab.locator("header").screenshot(type="png"))
    drawn = pixels(desk.tab.locator("#map").screenshot(type="png"))
    assert len(np.unique(drawn)) > len(np.unique(blank[:2]))
    charts = desk.tab.locator(".chart")
    assert charts.count() >= 8
    filled = "[...document.querySelectorAll('.chart')].filter(c => c.offsetHeight > 200).length"
    assert desk.tab.evaluate(filled) == charts.count()


@pytest.mark.parametrize("row", [0, 3, 13, 15])
def test_pointing_at_a_prompt_shows_it(desk, row):
    said = pointed_at(desk, row)
    expected = {0: "<script>window.hit=1</script>", 3: "right"}.get(row, f"prompt {row}")
    assert said.startswith(expected)
    assert f"{row + 1} occurrence" in said
    assert ("held out" in said) == (row in ASIDE)
    assert f"<b>{row % 3}</b>" in said  # its label, as text


def test_a_click_keeps_the_prompt_below_the_map(desk):
    frame(desk)
    desk.tab.mouse.click(*place(desk, 20))
    kept = desk.wait("document.getElementById('map-prompt').innerText")
    assert kept.startswith("prompt 20")


def test_pointing_at_an_interval_names_the_decile(desk):
    desk.tab.evaluate("document.getElementById('chart-deciles').scrollIntoView()")
    said = popped_up(desk, *desk.tab.evaluate(SCREEN, ["chart-deciles", 1.92, 2]))
    assert "base" in said
    assert "(1 = most isolated): 2\n" in said
    assert "95% interval 1 to 5" in said


@pytest.mark.parametrize("way", ["source", "label", "split", "weight"])
def test_colours_change_with_what_is_chosen(desk, way):
    frame(desk)
    before = desk.tab.locator("#map").screenshot()
    desk.tab.select_option("#map-color", way)
    desk.tab.wait_for_timeout(300)
    assert desk.tab.locator("#map").screenshot() != before
    names = desk.tab.locator("#map-legend").inner_text()
    expected = {"source": "one + two", "label": "<b>0</b>", "split": "held out"}
    assert expected.get(way, "isolated") in names


def test_one_label_can_be_picked_out(desk):
    frame(desk)
    desk.tab.select_option("#map-color", "label")
    before = desk.tab.locator("#map").screenshot()
    desk.tab.select_option("#map-only", label="<b>2</b>")
    desk.tab.wait_for_timeout(300)
    assert desk.tab.locator("#map").screenshot() != before
    assert desk.tab.locator("#map-legend").inner_text().split("\n") == ["<b>2</b>", "all others"]
    desk.tab.select_option("#map-color", "weight")
    assert desk.tab.locator("#map-only").is_hidden()


def listed(page: Page) -> list[str]:
    """Return the prompts that are listed below the map."""
    page.tab.wait_for_timeout(300)
    return page.tab.locator("#map-found li").all_inner_texts()


def test_a_search_lists_prompts_by_text_label_and_id(chromium, path):
    page = Page(chromium, path, **DESK)
    page.wait(READY)
    page.tab.fill("#map-search", "PROMPT 21")
    assert listed(page) == ["prompt 21"]
    assert page.tab.locator("#map-count").inner_text() == "1 prompts"
    assert page.tab.evaluate("document.getElementById('map').dataset.rings") == "1"
    page.tab.locator("#map-found li").click()
    assert "prompt 21" in page.tab.locator("#map-prompt").inner_text()
    page.tab.fill("#map-search", "<b>1</b>")  # a label
    assert len(listed(page)) == sum(row % 3 == 1 for row in range(TRAIN + HELD))
    page.tab.fill("#map-search", rows(True, ASIDE)[7]["id"])
    assert listed(page) == ["prompt 7"]
    page.tab.fill("#map-search", "prompt 3")  # of several texts one after another, and the last
    assert listed(page) == [f"prompt {row}" for row in (30, 31, 32, 33)]
    page.tab.fill("#map-search", "window.hit=1")
    assert len(listed(page)) == 1
    page.tab.fill("#map-search", "no such words")
    assert listed(page) == []
    page.tab.click("#map-clear")
    assert not page.tab.locator("#map-list").is_visible()
    assert not page.faults


def test_what_a_lasso_encloses_is_listed_and_saved(chromium, path, tmp_path):
    page = Page(chromium, path, accept_downloads=True, **DESK)
    page.wait(READY)
    frame(page)
    page.tab.evaluate(
        """() => {
          const map = [...Bokeh.index].find((v) => document.getElementById("map").contains(v.el));
          map.model.toolbar.active_drag = map.model.toolbar.tools.find(
            (tool) => tool.type === "LassoSelectTool");
        }"""
    )
    (left, top), (right, bottom) = place(page, 12), place(page, 3)  # of 6 to a line, from below
    corners = [
        (left - 9, top - 9),
        (right - 9, top - 9),
        (right - 9, bottom + 9),
        (left - 9, bottom + 9),
    ]
    page.tab.mouse.move(*corners[0])
    page.tab.mouse.down()
    for corner in (*corners[1:], corners[0]):
        page.tab.mouse.move(*corner, steps=8)
    page.tab.mouse.up()
    expected = [0, 1, 2, 6, 7, 8, 12, 13, 14]
    assert len(listed(page)) == len(expected)
    with page.tab.expect_download() as kept:
        page.tab.click("#map-save")
    kept.value.save_as(tmp_path / "some.jsonl")
    found = [json.loads(line) for line in (tmp_path / "some.jsonl").read_text().splitlines()]
    assert [row["row"] for row in found] == expected
    ids = [row["id"] for row in rows(True, ASIDE)]
    assert [row["id"] for row in found] == [ids[row] for row in expected]
    assert [row["label"] for row in found] == [f"<b>{row % 3}</b>" for row in expected]
    assert [row["weight"] is None for row in found] == [row in ASIDE for row in expected]
    assert {row["source"] for row in found} == {"one", "one + two"}


def test_filters_hide_and_a_search_looks_at_what_is_left(chromium, path):
    page = Page(chromium, path, **DESK)
    page.wait(READY)
    page.tab.click("#map-filters summary")
    groups = page.tab.locator("#map-filters legend").all_inner_texts()
    assert groups == ["region", "label", "source"]
    page.tab.locator("#map-filters fieldset", has_text="label").locator("label").nth(1).click()
    page.tab.fill("#map-search", "prompt")
    found = listed(page)
    assert found
    assert len(found) < TRAIN + HELD
    assert "some prompts are hidden" in page.tab.locator("#map-filters summary").inner_text()
    page.tab.locator("#map-filters fieldset", has_text="label").locator("label").nth(1).click()
    assert len(listed(page)) > len(found)


def test_prompts_are_inert_and_nothing_is_fetched_or_complained_of(desk, path):
    assert desk.faults == []
    assert desk.asked == [path.as_uri()]
    assert desk.tab.evaluate("typeof window.hit") == "undefined"
    inside = "header img, main img, main svg, main iframe, main textarea, main a"
    assert desk.tab.locator(inside).count() == 0
    assert desk.tab.locator("main script").count() == 0


def test_markup_that_slips_in_cannot_run(desk):
    """The page's policy is a second lock: it stops scripts that the page did not come with."""
    desk.tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=hit=9>')")
    desk.tab.evaluate("document.body.append(Object.assign(document.createElement('script'), "
                      "{textContent: 'window.hit = 10'}))")  # fmt: skip
    desk.tab.wait_for_timeout(200)
    assert desk.tab.evaluate("typeof window.hit") == "undefined"
    assert any("Content Security Policy" in line for line in desk.faults)
    desk.said.clear()
    assert len([url for url in desk.asked if not url.startswith("file:")]) == 0


def test_the_wheel_scrolls_the_page_and_zooms_the_map_once_it_is_clicked(chromium, path):
    page = Page(chromium, path, **DESK)
    page.wait(READY)

    def apart():  # pixels between neighbours
        return place(page, 1)[0] - place(page, 0)[0]

    box = frame(page)
    width, scrolled = apart(), page.tab.evaluate("scrollY")
    page.tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.tab.mouse.wheel(0, 100)
    page.wait(f"scrollY === {scrolled} + 100")
    assert apart() == pytest.approx(width)
    box = frame(page)
    page.tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    scrolled = page.tab.evaluate("scrollY")
    page.tab.mouse.wheel(0, -600)
    page.tab.wait_for_timeout(300)
    assert apart() > 1.1 * width
    assert page.tab.evaluate("scrollY") == scrolled
    assert page.faults == []


def test_light_and_dark(chromium, path, desk):
    dark = Page(chromium, path, color_scheme="dark", **DESK)
    dark.wait(READY)
    light, night = color_of(desk, "html"), color_of(dark, "html")
    assert sum(map(int, re.findall(r"\d+", light)[:3])) > 600
    assert sum(map(int, re.findall(r"\d+", night)[:3])) < 150
    charts = [page.tab.locator("#chart-density").screenshot() for page in (desk, dark)]
    assert charts[0] != charts[1]
    assert dark.faults == []
    dark.tab.emulate_media(color_scheme="light")  # while it is open
    dark.tab.wait_for_timeout(500)
    assert dark.tab.locator("#chart-density").screenshot() != charts[1]


def test_a_phone_shows_all_without_scrolling_sideways(chromium, path):
    page = Page(chromium, path, **PHONE)
    page.wait(READY)
    assert page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = frame(page)
    assert box["width"] > 300
    assert box["height"] < 600  # the page can be scrolled beside it
    page.tab.touchscreen.tap(*place(page, 20))
    assert page.wait("document.getElementById('map-prompt').innerText").startswith("prompt 20")
    assert page.faults == []


def test_many_prompts_are_drawn_as_pixels_and_found_by_pointing(chromium, tmp_path):
    """More than are drawn one by one: 36 coordinates, each with 555 prompts."""
    count = 20_000
    number = np.arange(count)
    ids = [f"{index:032x}" for index in number]
    rows = (
        {"id": name, "text": f"place {index % 36}", "count": 1, "sources": {}, "split": "train"}
        for index, name in enumerate(ids)
    )
    write_prompts(tmp_path / "prompts", rows)
    write_weights(tmp_path / "density", ids, np.ones(count))
    with publishing(tmp_path / "map") as made:
        coordinates = np.stack([number % 6, number // 6 % 6], axis=1).astype(np.float32)
        np.save(made / COORDINATES, coordinates)
        write_manifest(made, "map", rows=count, ids_sha256=ids_sha256(ids))
    sources = Sources(tmp_path / "prompts", tmp_path / "density", map=tmp_path / "map")
    write_report(sources, tmp_path / "index.html")
    page = Page(chromium, tmp_path / "index.html", **DESK)
    page.wait(READY)
    assert page.tab.evaluate("document.getElementById('map').dataset.drawn") == "pixels"
    assert pointed_at(page, 14).startswith("place 14")
    page.tab.mouse.click(*place(page, 14))
    page.tab.mouse.wheel(0, -400)
    page.wait("document.getElementById('map').dataset.drawn === 'points'")
    assert pointed_at(page, 14).startswith("place 14")
    assert page.faults == []


def test_a_page_without_map_and_training_is_silent_too(chromium, tmp_path):
    found = write_artifacts(tmp_path, labels=False)
    write_report(Sources(found.prompts, found.density), tmp_path / "index.html")
    page = Page(chromium, tmp_path / "index.html", **DESK)
    page.wait(READY)
    assert page.tab.locator("#map").count() == 0
    assert page.faults == []


def test_without_labels_there_is_no_colouring_by_them(chromium, tmp_path):
    write_report(write_artifacts(tmp_path, labels=False), tmp_path / "index.html")
    page = Page(chromium, tmp_path / "index.html", **DESK)
    page.wait(READY)
    options = page.tab.locator("#map-color option").all_inner_texts()
    assert options == ["weight", "region", "source", "split"]
    assert page.faults == []


def test_a_page_of_weigh_saves_ids_and_no_row_that_is_not_the_files(chromium, tmp_path):
    found = replace(write_artifacts(tmp_path, aside=()), standalone=True)
    write_report(found, tmp_path / "index.html")
    page = Page(chromium, tmp_path / "index.html", accept_downloads=True, **DESK)
    page.wait(READY)
    page.tab.fill("#map-search", " prompt \u00a0 21")  # white space is alike
    assert listed(page) == ["prompt 21"]
    with page.tab.expect_download() as kept:
        page.tab.click("#map-save")
    kept.value.save_as(tmp_path / "some.jsonl")
    one = json.loads((tmp_path / "some.jsonl").read_text())
    assert one["id"] == rows(True, ())[21]["id"]
    assert "row" not in one
    assert page.faults == []


def test_a_set_without_heldout_prompts_is_drawn(chromium, tmp_path):
    write_report(write_artifacts(tmp_path, aside=()), tmp_path / "index.html", tmp_path / "images")
    page = Page(chromium, tmp_path / "index.html", **DESK)
    page.wait(READY)
    assert "No prompt is held out." in page.tab.inner_text("main")
    assert (tmp_path / "images/heldout_distance.png").exists()  # an output of the stage: it says so
    assert page.faults == []
