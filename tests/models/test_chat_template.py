"""Settings of the chat template are in the published template: one setting for all readers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from isodense.models.chat_template import bake, settings_of
from isodense.models.inference.policy import load_tokenizer, prompt_tokens, with_row_tools
from isodense.models.params import ModelsParams, PolicyParams
from isodense.models.publish import publish
from isodense.pipeline.errors import ModelError, ParamsError
from isodense.pipeline.params import load
from tests import tiny
from tests.damage import give_template
from tests.thinking import TEMPLATE, TOOLS

ASKED = [*tiny.user("red egg"), {"role": "assistant", "content": "blue"}, *tiny.user("water?")]
OFF = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
ON = "<|im_start|>assistant\n"


def params(name: Path, **settings: object) -> PolicyParams:
    return PolicyParams(
        source="folder",
        name=str(name),
        version=None,
        sha256=None,
        path=None,
        chat_template_kwargs=settings,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give an unpublished model with a template that reads `enable_thinking` and `tools`."""
    made = tiny.policy(tmp_path / "raw")
    return give_template(made, TEMPLATE)


def rendered(folder: Path, prompt=ASKED, **more: object) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, **more)


def published(folder: Path, **settings: object) -> Path:
    out = folder.parent / f"out-{len(list(folder.parent.iterdir()))}"
    publish("policy", params(folder, **settings), out, folder.parent)
    return out


def test_a_setting_is_the_default_of_the_published_template(folder: Path):
    out = published(folder, enable_thinking=False)
    assert rendered(out) == rendered(folder, enable_thinking=False)
    assert rendered(out).endswith(OFF)
    assert not rendered(folder).endswith(OFF)
    assert rendered(out, enable_thinking=True) == rendered(folder)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["params"]["chat_template_kwargs"] == {"enable_thinking": False}


def test_no_setting_changes_nothing(folder: Path):
    out = published(folder)
    assert (out / "chat_template.jinja").read_text() == TEMPLATE
    assert "chat_template_kwargs" not in json.loads((out / "manifest.json").read_text())["params"]


def test_a_template_in_the_config_moves_to_its_file(folder: Path):
    (folder / "chat_template.jinja").unlink()
    tiny.edit(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    out = published(folder, enable_thinking=False)
    assert rendered(out).endswith(OFF)
    assert (out / "chat_template.jinja").read_text().endswith(TEMPLATE)
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
    assert "chat_template" in json.loads((folder / "tokenizer_config.json").read_text())


def test_named_templates_get_the_settings_that_they_read(folder: Path):
    (folder / "chat_template.jinja").unlink()
    entries = [
        {"name": "default", "template": tiny.TEMPLATE},
        {"name": "tool_use", "template": TEMPLATE},
    ]
    tiny.edit(folder / "tokenizer_config.json", chat_template=entries)
    out = published(folder, enable_thinking=False)
    assert (out / "chat_template.jinja").read_text() == tiny.TEMPLATE
    assert (out / "additional_chat_templates/tool_use.jinja").read_text().endswith(TEMPLATE)
    assert rendered(out).endswith(ON)
    assert rendered(out, tools=TOOLS).endswith(OFF)
    assert rendered(out, tools=TOOLS) == rendered(folder, tools=TOOLS, enable_thinking=False)


def test_named_templates_in_files_are_found(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": tiny.TEMPLATE, "tool_use": TEMPLATE}
    tokenizer.save_pretrained(folder)
    assert (folder / "additional_chat_templates/tool_use.jinja").is_file()
    out = published(folder, enable_thinking=False)
    assert rendered(out, tools=TOOLS).endswith(OFF)


def test_nanochats_template_reads_no_setting(tmp_path: Path):
    from isodense.models.nanochat_tokenizer import CHAT_TEMPLATE

    assert settings_of(CHAT_TEMPLATE) == set()
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    with pytest.raises(ModelError, match="reads no 'enable_thinking'") as raised:
        bake(tmp_path, {"enable_thinking": False})
    assert raised.value.hint == "names that it reads: none"
    assert (tmp_path / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_a_name_that_no_template_reads_is_an_error_with_those_that_it_reads(folder: Path):
    with pytest.raises(ModelError, match="reads no 'enable_thinkin'") as raised:
        published(folder, enable_thinkin=False)
    assert raised.value.hint == "names that it reads: enable_thinking, persona"
    (folder / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ModelError, match=r"chat_template\.jinja is no Jinja"):
        published(folder, enable_thinking=False)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template"):
        published(folder, enable_thinking=False)


@pytest.mark.parametrize(
    "value",
    ['O\'Neil said "hi"\\n\n{{ é 🕰️ }} {% raw %}', 3, -0.5, True, None, ["a", {"b": [1, None]}]],
)
def test_values_are_those_given(folder: Path, value: object):
    out = published(folder, persona=value)
    expected = "none" if value is None else rendered(folder, persona=value)
    assert (rendered(out) if value is not None else "none") == expected
    template = (out / "chat_template.jinja").read_text() + "{{ persona | tojson }}"
    (out / "chat_template.jinja").write_text(template)
    assert json.loads(rendered(out).split(ON)[-1].removeprefix("\n")) == value


def test_what_the_names_of_a_template_are():
    macro = "{% macro end() %}{% if mood %}{{ mood }}{% endif %}{% endmacro %}{{ end() }}"
    assert settings_of(macro) == {"mood"}
    assert settings_of("{% generation %}{{ bos_token }}{{ tone }}{% endgeneration %}") == {"tone"}
    assert settings_of("{% for x in messages %}{% break %}{% endfor %}") == set()
    assert settings_of("{{ strftime_now('%Y') }}{{ raise_exception(documents) }}") == set()


def test_a_macro_and_the_first_line_of_a_template_see_the_default(folder: Path):
    macro = "\n  {% macro end() %}{% if mood %}[{{ mood }}]{% endif %}{% endmacro %}x{{ end() }}"
    give_template(folder, macro)
    assert rendered(published(folder, mood="calm")) == rendered(folder, mood="calm")
    assert "[calm]" in rendered(folder, mood="calm")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{2x: 1}", "no name"),
        ("{enable_thinking: 2026-11-28}", "must be null"),
        ("{enable_thinking: .nan}", "must be null"),
        ("{enable_thinking: {1: 2}}", "must be null"),
        ("[enable_thinking]", "chat_template_kwargs"),
    ],
)
def test_values_that_no_template_could_have_are_refused(tmp_path: Path, settings: str, said: str):
    common = "{source: folder, name: x, version: null, sha256: null, path: null"
    lines = (
        f"models:\n  encoder: {common}}}\n  policy: {common}, chat_template_kwargs: {settings}}}"
    )
    (tmp_path / "params.yaml").write_text(lines)
    with pytest.raises(ParamsError, match=said):
        load(tmp_path / "params.yaml", "models", ModelsParams)


@pytest.mark.parametrize("named", [False, True])
def test_row_tools_render_as_tools_that_are_passed(folder: Path, named: bool):
    tokenizer = load_tokenizer(folder)
    if named:
        tokenizer.chat_template = {"default": tiny.TEMPLATE, "tool_use": TEMPLATE}
    prompts = [ASKED, tiny.user("clock?"), ASKED]
    tools = [None, TOOLS, TOOLS]
    expected = prompt_tokens(tokenizer, prompts, tools)
    assert len({len(ids) for ids in expected}) == 3
    tokenizer.chat_template = with_row_tools(tokenizer.chat_template)
    carried = [
        [{**prompt[0], "tools": schemas}, *prompt[1:]] if schemas else prompt
        for prompt, schemas in zip(prompts, tools, strict=True)
    ]
    found = tokenizer.apply_chat_template(
        carried, tools=None, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert found == expected
    assert prompt_tokens(tokenizer, prompts, tools) == expected


def test_published_folders_are_whole(folder: Path):
    out = published(folder, enable_thinking=False)
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in out.iterdir()} == names
    shutil.rmtree(folder)
    assert rendered(out).endswith(OFF)
