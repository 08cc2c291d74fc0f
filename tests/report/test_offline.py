"""The page for ``dvc plots`` draws every plot in a real browser, and asks the network nothing."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path

import pytest

from isodense.pipeline.errors import IsodenseError
from isodense.report.offline import install, page
from tests.browser import browser

ROOT = Path(__file__).parents[2]
DVC = [sys.executable, "-m", "dvc"]
TEMPLATES = {
    "weights": ("weight_over_mean", "prompts"),
    "cloud": ("log_density", "weight_over_mean"),
    "curve": ("step", "reward"),
    "deciles": ("decile", "reward"),
}
DRAWN = (
    "[...document.querySelectorAll('main > div')].map(d => d.querySelectorAll('svg.marks').length)"
)


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("plots")
    for command in (["git", "init", "-q"], [*DVC, "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    install(root)
    return root


def points(name, revs, count):
    x, y = TEMPLATES[name]
    rows = []
    for rev in revs:
        for i in range(1, count + 1):
            row = {x: str(i / 2), y: str(i * len(rev) % 7), "rev": rev}
            if name == "deciles":
                row |= {"policy": "trained", "low": "-1.5", "high": "8"}
                rows.append(row | {"policy": "base", y: "-99"})
            rows.append(row)
    return rows


def rendered(project, revs, count):
    """Return the page of DVC's own renderer with every template in it."""
    from dvc_render import VegaRenderer, render_html

    plots = [
        VegaRenderer(
            points(name, revs, count),
            name,
            template=name,
            template_dir=str(ROOT / ".dvc/plots"),
            x=x,
            y=y,
            title=f"title of {name}",
            revs_with_datapoints=list(revs),
        )
        for name, (x, y) in TEMPLATES.items()
    ]
    out = project / f"{len(revs)}-{count}.html"
    render_html(plots, out, html_template=project / ".dvc/plots/offline.html")
    return out


def opened(chromium, path, scheme="light"):
    """Return the page, what it wrote to the console, and what it asked for beside itself."""
    context = chromium.new_context(color_scheme=scheme, viewport={"width": 1100, "height": 900})
    tab = context.new_page()
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_function(f"{DRAWN}.every(count => count > 0)", timeout=10_000)
    return tab, said, [url for url in asked if url != path.as_uri()]


def test_every_template_of_the_project_is_tried():
    assert sorted(path.stem for path in (ROOT / ".dvc/plots").glob("*.json")) == sorted(TEMPLATES)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_all_plots_are_drawn_for_both_revisions_without_a_network(chromium, project, count):
    tab, said, asked = opened(chromium, rendered(project, ["HEAD", "candidate"], count))
    assert tab.evaluate(DRAWN) == [1] * len(TEMPLATES)
    assert said == []
    assert asked == []
    for name in TEMPLATES:
        text = tab.inner_text(f"#{name}")
        assert [
            word for word in (f"title of {name}", "HEAD", "candidate") if word not in text
        ] == []
    symbols = tab.evaluate("document.querySelectorAll('#cloud .mark-symbol.role-mark path').length")
    assert symbols == 2 * count
    assert "99" not in tab.inner_text("#deciles")  # the base policy is left out


def test_a_smoothed_curve_lies_over_the_raw_one(chromium, project):
    tab, _, _ = opened(chromium, rendered(project, ["HEAD", "candidate"], 30))
    lines = "document.querySelectorAll('#curve .mark-line path').length"
    assert tab.evaluate(lines) == 4


def test_the_page_follows_dark_mode(chromium, project):
    path = rendered(project, ["HEAD"], 5)
    fill = "getComputedStyle(document.querySelector('#curve .role-axis-title text')).fill"
    ground = "getComputedStyle(document.body).backgroundColor"

    def brightness(tab, what):
        return sum(int(part) for part in tab.evaluate(what)[4:-1].split(",")) / 3

    light, _, _ = opened(chromium, path)
    dark, _, _ = opened(chromium, path, "dark")
    assert brightness(light, ground) - brightness(light, fill) > 128
    assert brightness(dark, fill) - brightness(dark, ground) > 128
    dark.emulate_media(color_scheme="light")
    dark.wait_for_function(f"{fill} === {json.dumps(light.evaluate(fill))}")


def test_a_request_is_refused(chromium, project):
    path = project / "hostile.html"
    text = (project / ".dvc/plots/offline.html").read_text()
    path.write_text(text.replace("{plot_divs}", '<img id="x" src="http://127.0.0.1:9/x.png">'))
    context = chromium.new_context()
    tab = context.new_page()
    said = []
    tab.on("console", lambda message: said.append(message.text))
    tab.goto(path.as_uri())
    assert any("Content Security Policy" in line for line in said)


def test_dvc_uses_the_page_in_this_clone_only(project):
    command = [*DVC, "config", "plots.html_template"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "plots/offline.html"
    assert "html_template" not in (project / ".dvc/config").read_text()
    assert list((project / ".dvc/plots").glob("*.tmp")) == []


def test_without_the_libraries_the_error_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "vl_convert":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(IsodenseError, match=r"pip install 'isodense\[plots\]'"):
        install(tmp_path)
    assert list((tmp_path / ".dvc").iterdir()) == []


def test_outside_a_project_it_says_where_to_run(tmp_path):
    with pytest.raises(IsodenseError, match="root of the project"):
        install(tmp_path)


@pytest.mark.parametrize("mark", ["{plot_divs}", "{scripts}", "</script>", "<!--"])
def test_libraries_that_would_break_the_page_are_refused(mark):
    with pytest.raises(IsodenseError, match="vl-convert-python"):
        page(f"let a = '{mark}';")
