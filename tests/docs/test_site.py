"""The documentation site builds strictly, shows what GitHub does, and loads nothing foreign."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

import isodense
from isodense.doctor.checks.project import section_class
from isodense.pipeline import params

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
FILES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")  # pages of the site as well
SHAPES = ("h1", "h2", "h3", "table", "tr", "ul", "ol", "li", "pre", "img")
VOID = {"img", "br", "hr", "input", "meta", "link", "path", "circle"}
LOADING = {"src", "srcset", "data", "poster", "action"}  # and href of link


class Page(HTMLParser):
    """The tags of a page's article, its text, and every address that a browser would load."""

    def __init__(self, html: str, everything: bool = False) -> None:
        super().__init__()
        self.counts = dict.fromkeys(SHAPES, 0)
        self.text, self.loads, self.ids, self.depth = "", [], set(), 0
        self.inside = everything
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "article":
            self.inside = True
        if self.inside and tag in self.counts:
            self.counts[tag] += 1
        names = LOADING | ({"href"} if tag == "link" else set())
        self.loads += [value or "" for name, value in attributes if name in names]
        self.ids.add(given.get("id"))

    def handle_endtag(self, tag):
        if tag == "article":
            self.inside = False

    def handle_data(self, data):
        self.text += data if self.inside else ""


def build(root, folder):
    """Build the site of the tree `root` into `folder`."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(root / "src")}
    return subprocess.run(
        command, cwd=root, env=environ, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def read(site, page, **options):
    return Page((site / page).with_suffix(".html").read_text(encoding="utf-8"), **options)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_shape_that_github_gives_it(site, page):
    markdown = (ROOT / "docs" / page).read_text(encoding="utf-8")
    expected = Page(MarkdownIt("gfm-like", {"linkify": False}).render(markdown), everything=True)
    assert read(site, page).counts == expected.counts


def test_nothing_is_loaded_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    loaded = {
        (path.name, address)
        for path in pages
        for address in Page(path.read_text(encoding="utf-8")).loads
    }
    assert len(loaded) > len(pages)
    assert [one for one in loaded if re.match(r"(https?:)?//", one[1])] == []
    for sheet in site.rglob("*.css"):
        assert re.findall(r"url\(['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")) == []


def test_every_param_is_in_the_reference(site):
    def keys(section, prefix):
        for name, value in section.items():
            free = f"{prefix}{name}" in ("train.lora", "train.grpo", "reward.full.trainer")
            if isinstance(value, dict) and not free:
                yield from keys(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    text = read(site, "reference/params").text
    known = list(keys(yaml.safe_load((ROOT / "params.yaml").read_text()), ""))
    assert len(known) > 60
    assert [key for key in known if f"\n{key}\n" not in text] == []
    row = text[text.index("\ndensity.ess\n") :][:200]
    assert "number, 0.05 to 1.0" in row
    assert "0.8" in row
    assert "target of the effective sample size" in row


def test_params_shown_on_a_page_are_valid(tmp_path):
    def merged(old, new):
        both = isinstance(old, dict) and isinstance(new, dict)
        return old | {key: merged(old.get(key), new[key]) for key in new} if both else new

    shipped = yaml.load((ROOT / "params.yaml").read_text(), params._Loader)  # noqa: S506
    shown = 0
    for page in ("README.md", *(f"docs/{page}" for page in PAGES)):
        text = (ROOT / page).read_text(encoding="utf-8")
        for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            values = yaml.load(block, params._Loader)  # noqa: S506
            if set(values) <= set(params.SECTIONS):
                (tmp_path / "params.yaml").write_text(yaml.safe_dump(merged(shipped, values)))
                for section in values:
                    params.load(tmp_path / "params.yaml", section, section_class(section))
                shown += 1
    assert shown >= 5


def test_every_command_and_option_is_in_the_reference(site):
    def output(*words):
        command = [
            sys.executable,
            "-c",
            "from isodense.cli.main import main; main()",
            *words,
            "--help",
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    page = read(site, "reference/cli")
    commands = re.findall(r"^    ([a-z-]+)(?: |$)", output(), re.MULTILINE)
    assert {"inspect", "verify", "merge", "export", "compare"} <= set(commands)
    assert [name for name in commands if f"isodense-{name}" not in page.ids] == []
    options = re.findall(r"(--[a-z-]+)", output("export"))
    assert "--heldout" in options
    assert [name for name in options if name not in page.text] == ["--help"]


def test_every_public_name_is_in_the_reference(site):
    ids = read(site, "reference/api").ids
    modules = {name: getattr(isodense, name).__module__ for name in isodense._EXPORTS}
    assert [name for name in modules if f"{modules[name]}.{name}" not in ids] == []
    assert "isodense.sampling.weights.Weights.align" in ids


@pytest.mark.slow
def test_a_link_to_nowhere_stops_the_build(tmp_path):
    for name in ("src", "stages", "params.yaml", *FILES):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copyfile(ROOT / "mkdocs.yml", tmp_path / "mkdocs.yml")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs" / "stages" / "models.md").open("a", encoding="utf-8") as page:
        page.write("\n[a](../../src/isodense/none.py) [b](density.md#none) [c](none.md)\n")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode == 1
    for target in ("src/isodense/none.py", "#none", "none.md"):
        assert re.search(rf"models.md.*{re.escape(target)}", built.stdout + built.stderr)
