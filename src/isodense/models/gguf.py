"""Dequantising a ``.gguf`` file to a float32 safetensors folder."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from isodense.models.inference.load import read_model, read_tokenizer
from isodense.pipeline.errors import ModelError


def dequantise(source: Path, out: Path) -> None:
    """Write the model and tokenizer of a ``.gguf`` file as ``transformers`` saves them.

    Parameters
    ----------
    source : Path
        The ``.gguf`` file.
    out : Path
        An existing folder.

    Raises
    ------
    ModelError
        If ``transformers`` cannot read the file.
    """
    folder, name = str(source.parent), source.name
    try:
        tokenizer = read_tokenizer(folder, gguf_file=name)
        model, _ = read_model(AutoModelForCausalLM, folder, gguf_file=name, dtype=torch.float32)
    except (ValueError, OSError, KeyError, struct.error, NotImplementedError) as error:
        raise ModelError(f"{source.name} cannot be dequantised: {error}") from error
    del model.config.quantization_config  # otherwise transformers saves and loads it as quantised
    model.hf_quantizer = None
    model.config.name_or_path = model.config._name_or_path = ""
    tokenizer.name_or_path = ""
    tokenizer.init_kwargs.pop("name_or_path", None)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
