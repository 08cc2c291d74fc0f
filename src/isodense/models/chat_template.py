"""Chat templates of a published policy: settings baked in as defaults, and what a template reads.

A setting such as ``enable_thinking: false`` changes the tokens of every prompt. Passed as an
argument, it would have to be passed wherever the template is applied: by the filter on lengths, the
reward, the trainer, the evaluation, and whatever reads the folder afterwards. So the stage
``models`` writes it into the template itself, as a default in front of the text: an argument of the
same name still wins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from isodense.pipeline.artifact import write_json
from isodense.pipeline.errors import ModelError

FILE = "chat_template.jinja"
FOLDER = "additional_chat_templates"  # of named templates, NAME.jinja
CONFIG = "tokenizer_config.json"
# What transformers hands to every template: the conversation, and functions of its own.
GIVEN = {
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "raise_exception",
    "strftime_now",
}


class _Generation(Extension):
    """The tag ``{% generation %}`` of transformers, which marks the assistant's tokens."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what is inside the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def settings_of(template: str) -> set[str]:
    """Return the names that a chat template reads besides the conversation and special tokens.

    Parameters
    ----------
    template : str
        Jinja source.

    Raises
    ------
    jinja2.TemplateError
        If it is no Jinja.

    Examples
    --------
    >>> sorted(settings_of("{{ bos_token }}{% if enable_thinking %}{{ messages }}{% endif %}"))
    ['enable_thinking']
    """
    environment = ImmutableSandboxedEnvironment(extensions=[_Generation, loopcontrols])
    names = meta.find_undeclared_variables(environment.parse(template))
    return {name for name in names - GIVEN if not name.endswith("_token")}


def bake(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write `settings` into every chat template of a model folder, as defaults.

    Templates that sit in ``tokenizer_config.json`` move to the files that transformers itself
    writes: ``chat_template.jinja``, and ``additional_chat_templates/NAME.jinja`` for named ones.

    Parameters
    ----------
    folder : Path
        A safetensors folder with a tokenizer.
    settings : mapping
        Values by name: null, booleans, numbers, text, lists and mappings of these.

    Raises
    ------
    ModelError
        If there is no chat template, it is no Jinja, or none reads one of the names.
    """
    if not settings:
        return
    templates = dict(_unpacked(folder))
    if not templates:
        message = "models.policy.chat_template_kwargs is set, and the policy has no chat template"
        raise ModelError(message, "set it to {}, or choose an instruction-tuned policy")
    known: set[str] = set()
    for path, template in templates.items():
        try:
            known |= settings_of(template)
        except TemplateError as error:
            raise ModelError(
                f"the policy's chat template {path.name} is no Jinja: {error}"
            ) from None
    if unknown := sorted(set(settings) - known):
        names = ", ".join(sorted(known)) or "none"
        message = f"models.policy.chat_template_kwargs: the chat template reads no {unknown[0]!r}"
        raise ModelError(message, f"names that it reads: {names}")
    for path, template in templates.items():
        read = settings_of(template)
        path.parent.mkdir(exist_ok=True)
        defaults = "".join(_default(name, settings[name]) for name in settings if name in read)
        path.write_text(defaults + template, encoding="utf-8")


def _unpacked(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield path and text of each template; those of the config are taken out of it."""
    config_path = folder / CONFIG
    if config_path.is_file():
        config = json.loads(config_path.read_text(encoding="utf-8"))
        found = config.pop("chat_template", None)
        if found is not None:
            named = {"default": found} if isinstance(found, str) else _by_name(found)
            for name, template in named.items():
                yield _path(folder, name), template
            write_json(config_path, config)
    # A file wins over the config, as it does in transformers.
    for path in (folder / FILE, *sorted((folder / FOLDER).glob("*.jinja"))):
        if path.is_file():
            yield path, path.read_text(encoding="utf-8")


def _by_name(entries: list[dict[str, str]]) -> dict[str, str]:
    return {entry["name"]: entry["template"] for entry in entries}


def _path(folder: Path, name: str) -> Path:
    return folder / FILE if name == "default" else folder / FOLDER / f"{name}.jinja"


def _default(name: str, value: Any) -> str:
    """Return the lines that set a name where it was not passed; trim_blocks eats the newline."""
    return (
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}\n"
    )


def _literal(value: Any) -> str:
    """Return a value in Jinja's notation.

    Examples
    --------
    >>> _literal({"depth": [1, None], "on": True})
    '{"depth": [1, none], "on": true}'
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        pairs = (f"{_literal(name)}: {_literal(part)}" for name, part in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
