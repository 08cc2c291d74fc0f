"""Section ``base`` of ``params.yaml``: seed and device; threads, and a place for compiled code."""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.params import Params
from isodense.pipeline.storage import existing

log = logging.getLogger("isodense")


class BaseParams(Params):
    """Section ``base`` of ``params.yaml``."""

    seed: int = Field(ge=0, le=2**31 - 1)
    device: Literal["auto", "cpu", "cuda"]

    def rng(self, name: str) -> np.random.Generator:
        """Return the random generator of the stage `name`."""
        return np.random.default_rng(self.seed_of(name))

    def seed_of(self, name: str) -> int:
        """Return a 32-bit seed that depends on ``base.seed`` and `name` only.

        It must never change: every draw of the pipeline comes from it, and DVC does not watch it.
        """
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1


def resolve_device(device: str) -> str:
    """Return ``"cuda"`` or ``"cpu"`` for the param ``base.device``.

    Raises
    ------
    IsodenseError
        If a GPU is requested and torch sees none.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise IsodenseError("base.device is cuda, but torch sees no GPU", "set it to auto or cpu")
    return device


def bfloat16_gain() -> float | None:
    """Return how much faster than in float32 an encoder is in bfloat16 on this processor.

    It is what was measured with MiniLM on one processor of each kind (``docs/benchmarks.md``): with
    AMX 2.5 times, with AVX-512's bfloat16 alone 1.5 times. None without either: there it is slower.
    """
    import torch

    able = torch.cpu.get_capabilities()
    return 2.5 if able.get("amx_bf16") else 1.5 if able.get("avx512_bf16") else None


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread of torch and BLAS inside the block: threads change the order of sums."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def let_numba_compile() -> None:
    """Give numba a folder where it has none; to be called before what it compiles is imported.

    It keeps compiled code in ``__pycache__`` beside the source or in the user's cache, and refuses
    to import a function where neither can be written.
    """
    import numba

    config: Any = numba.config
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folders = [Path(numba.__file__).parents[1], Path(home)]
    if config.CACHE_DIR or any(os.access(existing(path), os.W_OK) for path in folders):
        return
    config.CACHE_DIR = tempfile.mkdtemp(prefix="isodense-numba-")
    atexit.register(shutil.rmtree, config.CACHE_DIR, ignore_errors=True)
    log.info(
        "%s and %s cannot be written, so numba compiles anew in every run; set NUMBA_CACHE_DIR to "
        "a folder that can",
        *folders,
    )
