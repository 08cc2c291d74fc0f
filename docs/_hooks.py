"""What the site is built of besides the pages in this folder.

- ``reference/``: params from the stages' models and ``params.yaml``, commands from the
  parsers, and the list of Python names that mkdocstrings fills in;
- ``project/``: files outside this folder that pages link to (as they must for GitHub), each as a
  page of its own;
- lists, which GitHub lets one indent by two or three spaces and Python-Markdown only by four.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import posixpath
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File

import isodense
from isodense.cli import main as cli
from isodense.doctor.checks.project import section_class
from isodense.pipeline import params

log = logging.getLogger("mkdocs.hooks.isodense")

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")
ITEM = re.compile(r"(\s*)((?:[-*+]|\d+[.)])\s+)\S")
FENCE = re.compile(r"\s*(`{3,}|~{3,})")
FURTHER = (  # names that pages use and that `isodense` itself does not export
    "isodense.prompts.reader.load_prompts",
    "isodense.prompts.reader.PromptSet",
    "isodense.embeddings.reader.load_vectors",
    "isodense.map.reader.load_coordinates",
    "isodense.reward.scoring.load.load_reward",
    "isodense.prompts.conversations.prompt_id",
    "isodense.pipeline.artifact.read_manifest",
    "isodense.models.nanochat.load",
    "isodense.models.nanochat.convert",
    "isodense.pipeline.errors.ParamsError",
    "isodense.pipeline.errors.DataError",
    "isodense.pipeline.errors.ArtifactError",
)


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and every file outside ``docs`` that a page links to."""
    for name, content in (("params", _params()), ("cli", _commands()), ("api", _api())):
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    queue = ["CHANGELOG.md", "CONTRIBUTING.md"]  # which the navigation names
    queue.append("README.md")  # so that its links are checked too
    for file in list(files.documentation_pages()):
        queue += _outside(file.content_string, f"docs/{file.src_uri}")
    while queue:
        path = queue.pop()
        if files.get_file_from_path(_page(path)) is None:
            text = (ROOT / path).read_text(encoding="utf-8")
            files.append(File.generated(config, _page(path), content=_shown(path, text)))
            queue += _outside(text, path) if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at the site's pages and indent lists as Python-Markdown wants them."""
    uri = page.file.src_uri
    origin = uri.removeprefix("project/") if uri.startswith("project/") else f"docs/{uri}"

    def moved(match: re.Match[str]) -> str:
        target = _page(_resolved(match[1], origin))
        return posixpath.relpath(target, posixpath.dirname(uri) or ".") + (match[2] or "")

    return _indented("".join(text if code else LINK.sub(moved, text)
                             for text, code in _pieces(markdown)))  # fmt: skip


# --- links ----------------------------------------------------------------------------------------


def _resolved(link: str, origin: str) -> str:
    """Return the path in the repository of a link in the file `origin`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def _page(path: str) -> str:
    """Return where on the site a file of the repository is."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"project/{path}" if path.endswith(".md") else f"project/{path}.md"


def _outside(markdown: str, origin: str) -> list[str]:
    """Return the files outside ``docs`` that a page links to; warn of those that do not exist."""
    found = []
    for text, code in _pieces(markdown):
        for match in () if code else LINK.finditer(text):
            path = _resolved(match[1], origin)
            if (ROOT / path).is_file():
                found += [] if path.startswith("docs/") else [path]
            elif not path.startswith("docs/"):
                log.warning("%s links to %s, which is not a file", origin, path)
    return found


def _shown(path: str, text: str) -> str:
    """Return the Markdown of a file of the repository: itself, or a page with its text."""
    if path.endswith(".md"):
        return text
    ticks = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    language = {".py": "python", ".yaml": "yaml", ".sh": "bash"}.get(Path(path).suffix, "text")
    return f"# {path}\n\n{ticks}{language}\n{text.rstrip()}\n{ticks}\n"


# --- GitHub's Markdown for Python-Markdown --------------------------------------------------------


def _pieces(markdown: str) -> Iterator[tuple[str, bool]]:
    """Yield the lines of a page, and of each whether it is in a fenced block."""
    closing = ""
    for line in markdown.splitlines(keepends=True):
        fence = FENCE.match(line)
        yield line, bool(closing or fence)
        if fence and not closing:
            closing = fence[1]
        elif fence and line.strip().startswith(closing) and not line.strip(" `~\n"):
            closing = ""


def _indented(markdown: str) -> str:
    """Indent what belongs to an item of a list by four spaces a level; part it from paragraphs."""
    out: list[str] = []
    open_items: list[int] = []  # the columns in which their texts begin
    fenced = listed = False  # whether the lines since the last empty one begin with an item
    for line, code in _pieces(markdown):
        indent = len(line) - len(line.lstrip())
        item = None if code else ITEM.match(line)
        if line.strip() and not (code and fenced):
            while open_items and indent < open_items[-1]:
                open_items.pop()
        fenced = code
        shift = 4 * len(open_items) - (open_items[-1] if open_items else 0)
        if not (out and out[-1].strip()):
            listed = bool(item)
        elif item and not listed:  # which only GitHub allows within a paragraph
            out.append("\n")
            listed = True
        out.append((" " * (indent + shift) + line.lstrip()) if line.strip() else "\n")
        if item:
            open_items.append(indent + len(item[2]))
    return "".join(out)


# --- params ---------------------------------------------------------------------------------------


def _params() -> str:
    """Return the reference of ``params.yaml``."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    values = yaml.load(text, Loader=params._Loader)  # noqa: S506 (a SafeLoader)
    comments = _comments(text)
    out = [
        "# Params\n",
        "Every key of [`params.yaml`](../../params.yaml), with its type, its range and the value "
        "that the repository ships. There are no hidden defaults: a key that is missing, "
        "misspelt, of the wrong type or out of range stops the stage, and all faults of a section "
        "are reported at once, with their lines.\n",
        "Change one for an experiment with `dvc exp run -S density.k=20`, or in the file.\n",
    ]
    for section in params.SECTIONS:
        out.append(f"## {section}\n")
        out += _table(section_class(section), values[section], (section,), comments)
    return "\n".join(out)


def _comments(text: str) -> dict[tuple[str, ...], str]:
    """Return the comment at the end of each key's line."""
    lines = text.splitlines()
    found: dict[tuple[str, ...], str] = {}

    def walk(node: yaml.MappingNode, key: tuple[str, ...]) -> None:
        for name, value in node.value:
            child = (*key, str(name.value))
            block = isinstance(value, yaml.MappingNode) and not value.flow_style
            end = name.end_mark if block else value.end_mark
            found[child] = lines[end.line][end.column :].partition("# ")[2].strip()
            if isinstance(value, yaml.MappingNode):
                walk(value, child)

    walk(typing.cast("yaml.MappingNode", yaml.compose(text, Loader=params._Loader)), ())
    return found


def _table(
    cls: type[params.Params], values: dict[str, Any], key: tuple[str, ...], comments: dict[Any, str]
) -> Iterator[str]:
    """Yield the table of a model's fields, and those of the models in it."""
    rows, nested = [], []
    for name, field in cls.model_fields.items():
        child, hint = (*key, name), field.annotation
        if isinstance(hint, type) and issubclass(hint, params.Params):
            nested.append((hint, values[name], child))
            continue
        shown = yaml.safe_dump(values[name], default_flow_style=True, width=1000)
        cells = (
            f"`{'.'.join(child)}`",
            _type(hint) + _range(field.metadata),
            f"`{shown.removesuffix(chr(10)).removesuffix('...').strip()}`",
            _meaning(comments[child], hint),
        )
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    if comments.get(key):
        yield f"{comments[key]}\n"
    if rows:
        yield "\n".join(["| key | takes | shipped | meaning |", "| --- | --- | --- | --- |", *rows])
        yield ""
    for hint, inner, child in nested:
        yield f"### {'.'.join(child)}\n"
        yield from _table(hint, inner, child, comments)


def _meaning(comment: str, hint: Any) -> str:
    """Return a comment, without the choices that it begins with: they have their own column."""
    choices = " | ".join(map(str, typing.get_args(hint)))
    rest = comment.removeprefix(choices)
    return comment if rest.startswith(" (") else rest.strip(" ,;:")


def _type(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    names = {int: "integer", float: "number", str: "text", bool: "`true` or `false`"}
    if hint in names:
        return names[hint]
    if origin is typing.Literal:
        return ", ".join(f"`{arg}`" for arg in args)
    if origin in (types.UnionType, typing.Union):
        inner = [_type(arg) for arg in args if arg is not type(None)]
        return " or ".join([*inner, "`null`"] if type(None) in args else inner)
    return f"list of {_type(args[0])}" if origin is list else "mapping"


def _range(bounds: list[Any]) -> str:
    limits = {name: limit for bound in bounds for name, limit in dataclasses.asdict(bound).items()}
    low, high = limits.get("ge"), limits.get("le")
    if "min_length" in limits:
        return ", not empty"
    if low is not None and high is not None:
        return f", {low:,} to {high:,}"
    if low is not None:
        return f", at least {low:,}"
    return f", at most {high:,}" if high is not None else ""


# --- commands and Python names --------------------------------------------------------------------


def _commands() -> str:
    """Return the reference of the command line."""
    parser = cli.parser()
    out = ["# Commands\n", f"{parser.description}\n", *_usage(parser)]
    for name, sub in _subcommands(parser):
        out += [f"## {name}\n", f"{_prose(sub.description)}\n", *_usage(sub)]
        rows = [row for action in sub._actions if (row := _option(action))]
        out += ["| option | meaning |", "| --- | --- |", *rows, ""]
        if sub.epilog:
            example = re.sub(r"^\s*examples?:\s*", "", sub.epilog)
            out.append(f"```bash\n{example.strip()}\n```\n")
    return "\n".join(out)


def _subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield f"{parser.prog} {name}", sub
                yield from _subcommands(sub)


def _usage(parser: argparse.ArgumentParser) -> list[str]:
    formatter = argparse.HelpFormatter(parser.prog, width=76)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, "")
    return [f"```text\n{formatter.format_help().strip()}\n```\n"]


def _option(action: argparse.Action) -> str:
    """Return an option's row, nothing for ``--help`` and for the list of commands."""
    if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
        return ""
    value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    shown = "" if action.nargs == 0 or action.choices else f" {value}"
    names = ", ".join(f"`{flag}{shown}`" for flag in action.option_strings) or f"`{value}`"
    said = _prose(str(action.help or "")) % {**vars(action), "prog": ""}
    choices = ", ".join(f"`{choice}`" for choice in action.choices or ())
    needed = " Required." if action.required and action.option_strings else ""
    text = f"{said}{': ' if choices else ''}{choices}{'.' if needed else ''}{needed}"
    return f"| {names} | {text.replace('|', chr(92) + '|')} |"


def _prose(text: str | None) -> str:
    """Return a help text for Markdown, in which ``<`` and ``*`` would mean something."""
    return re.sub(r"([<*_])", r"\\\1", text or "")


def _api() -> str:
    """Return the page of Python names, which mkdocstrings fills in."""
    out = [
        "# Python\n",
        "Names of `isodense` are imported on first use: `import isodense` costs nothing, and "
        "`isodense.load_weights` needs numpy alone.\n",
        "## Names of `isodense`\n",
    ]
    out += [f"::: {module}.{name}\n" for name, module in isodense._EXPORTS.items()]
    out.append("## Names of its modules\n")
    full = "    options: {show_root_full_path: true}\n"
    out += [f"::: {name}\n{full}" for name in FURTHER if _exists(name)]
    return "\n".join(out)


def _exists(name: str) -> bool:
    """Tell whether the module of a dotted name is there."""
    path = ROOT / "src" / name.rpartition(".")[0].replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
