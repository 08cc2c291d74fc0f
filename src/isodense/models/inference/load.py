"""The one place where configs, tokenizers and weights of a model folder are read.

Nothing of a model is ever run: a folder that needs code of its own (``auto_map`` with a model type
that transformers does not know) is refused before transformers could ask whether to run it. Weights
that the architecture has no place for are an error too, since the model would then be another than
the published one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from isodense.pipeline.errors import ModelError

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    SafetensorError,
)  # raised by a bad folder
HINT = "choose a model whose model_type transformers knows"
ONE_AT_A_TIME = Lock()  # transformers swaps torch's initialisers while it loads
OURS = {  # modules with architectures that transformers does not have, by model type
    "nanochat_2026": "isodense.models.inference.nanochat_2026",
}
SHOWN = 4  # names of unknown weights in an error
# Buffers that older versions of transformers saved and newer ones compute, and the pooler, which
# no vector is made of.
HARMLESS = re.compile(
    r"(^|\.)(position_ids|inv_freq|masked_bias)$"
    r"|(^|\.)(h|layers)\.\d+\.(attn|attention)\.bias$"
    r"|(^|\.)pooler\."
)
LANGUAGE_HEAD = re.compile(r"(^|\.)lm_head\.(weight|bias)$")


def read_config(folder: str | Path) -> Any:
    """Read the config of a model; ``get_text_config()`` of it has the language model's sizes.

    Raises
    ------
    ModelError
        If the model needs code of its own, or transformers cannot read the config.
    """
    refuse_code(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except UNREADABLE as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from None


def policy_class(folder: str | Path) -> Any:
    """Return the class of transformers that a policy is loaded in, the one that TRL trains.

    Raises
    ------
    ModelError
        If the model is no decoder.
    """
    config = read_config(folder)
    if config.is_encoder_decoder:
        message = f"{folder} is an encoder-decoder ({config.model_type}), which TRL does not train"
        raise ModelError(message, "choose a decoder: a causal language model")
    named = getattr(transformers, (config.architectures or [""])[0], None)
    writes = named is not None and named.can_generate()
    return named if writes else transformers.AutoModelForCausalLM


def read_tokenizer(folder: str | Path, **settings: Any) -> Any:
    """Read the tokenizer of a model; errors of a bad folder are those in `UNREADABLE`.

    Raises
    ------
    ModelError
        If the model needs code of its own.
    """
    refuse_code(folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **settings)


def read_model(
    kind: Any,
    folder: str | Path,
    left_out: Callable[[Any, str], bool] = lambda _model, _name: False,
    **settings: Any,
) -> tuple[Any, list[str]]:
    """Read the weights of a model; errors of a bad folder are those in `UNREADABLE`.

    Parameters
    ----------
    kind : type
        A class of transformers with ``from_pretrained``.
    folder : str or Path
        A safetensors folder.
    left_out : callable
        Given the model and the name of a weight that it has no place for, says whether it is left
        out by design; see :func:`other_head`.
    **settings
        Passed to ``from_pretrained``.

    Returns
    -------
    model : transformers.PreTrainedModel
    missing : list of str
        Names of weights that the folder lacks, which are made up at random.

    Raises
    ------
    ModelError
        If the model needs code of its own, or has weights that `kind` does not know.
    """
    refuse_code(folder)
    with ONE_AT_A_TIME, quiet():
        model, info = kind.from_pretrained(
            folder,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    unknown = sorted(
        name
        for name in info["unexpected_keys"]
        if not HARMLESS.search(name) and not left_out(model, name)
    )
    if unknown:
        names = ", ".join(unknown[:SHOWN]) + (", …" if len(unknown) > SHOWN else "")
        message = f"{folder} has {len(unknown)} weights that {type(model).__name__} does not know"
        raise ModelError(f"{message}: {names}", f"without them it is another model; {HINT}")
    return model, sorted(info["missing_keys"])


def require_whole(folder: str | Path, missing: list[str]) -> None:
    """Raise if weights are missing.

    Raises
    ------
    ModelError
        Naming the first.
    """
    if missing:
        message = f"{folder} lacks {len(missing)} weights, first {missing[0]}"
        raise ModelError(message, "fetch the model again: they would be made up at random")


def other_head(folder: str | Path) -> Callable[[Any, str], bool]:
    """Return the function that tells heads, beside the backbone, from the backbone's weights.

    Parameters
    ----------
    folder : str or Path
        A safetensors folder. If it was saved with a head, the backbone's names have a prefix.
    """
    try:
        names = set(weights_of(folder))
    except SafetensorError:  # a damaged file is for transformers to complain about
        names = set()

    def is_head(model: Any, name: str) -> bool:
        if LANGUAGE_HEAD.search(name):
            return True
        prefix = f"{model.base_model_prefix}."
        return not name.startswith(prefix) and any(other.startswith(prefix) for other in names)

    return is_head


def weights_of(folder: str | Path) -> dict[str, Callable[[], Any]]:
    """Return, for each weight in a safetensors folder, the function that reads it as a tensor."""

    def reader(path: Path, name: str) -> Callable[[], Any]:
        def read() -> Any:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)

        return read

    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update({name: reader(path, name) for name in file.keys()})
    return found


def refuse_code(folder: str | Path) -> None:
    """Raise if a model can only be loaded by running code that comes with it.

    An architecture that isodense has a class for is made known to transformers.

    Raises
    ------
    ModelError
        Naming the code.
    """
    config, tokenizer = (
        _read_json(Path(folder, name)) for name in ("config.json", "tokenizer_config.json")
    )
    if ours := OURS.get(str(config.get("model_type"))):
        import_module(ours)
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING:
        kind = f"model_type {config.get('model_type')!r}"
        message = f"{folder} needs code of its own ({kind}, auto_map), which isodense never runs"
        raise ModelError(message, HINT)
    code = (tokenizer.get("auto_map") or {}) if isinstance(tokenizer.get("auto_map"), dict) else {}
    if code.get("AutoTokenizer") and not Path(folder, "tokenizer.json").is_file():
        message = f"{folder} has a tokenizer that needs code of its own, which isodense never runs"
        raise ModelError(message, "choose a model with a tokenizer.json")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars of transformers and its list of unused weights."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty if there is none; a bad file is for transformers to refuse."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
