"""What `pip install isodense` leaves out, and what to install when it is missing.

Training, the report, the pipeline and a few others need libraries that weighing prompts, loading
weights and drawing from them do not. They are imported where they are used; :func:`explained` turns
the failure into an error that names the extra, such as ``pip install 'isodense[train]'``, and
:func:`require` asks before anything is computed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from isodense.pipeline.errors import IsodenseError

EXTRAS = {  # by the name that is imported; pyproject.toml has the distributions
    "train": ("accelerate", "dvclive", "gguf", "peft", "sacrebleu", "trl", "vendi_score"),
    "hub": ("datasets",),
    "report": ("bokeh", "igraph", "jinja2", "matplotlib"),
    "pipeline": ("dvc", "dvc_data", "dvc_objects", "pathspec"),
    "math": ("math_verify",),
    "ray": ("ray",),
    "plots": ("vl_convert",),
}


class MissingExtra(IsodenseError, ImportError):
    """A library that belongs to an extra is not installed.

    Parameters
    ----------
    module : str
        What could not be imported.
    extra : str
        The extra that brings it.
    """

    def __init__(self, module: str, extra: str) -> None:
        hint = f"pip install 'isodense[{extra}]', or 'isodense[all]' for everything"
        super().__init__(f"{module} is not installed", hint)
        self.module, self.extra = module, extra


@contextmanager
def explained() -> Iterator[None]:
    """Say which extra brings a library that the block could not import.

    Raises
    ------
    MissingExtra
        In the place of a ModuleNotFoundError, where an extra has the library.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        extra = next((name for name, modules in EXTRAS.items() if module in modules), None)
        if extra is None:
            raise
        raise MissingExtra(module, extra) from error


def require(extra: str) -> None:
    """Raise unless the libraries of an extra are installed.

    Raises
    ------
    MissingExtra
    """
    for module in EXTRAS[extra]:
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(module, extra)
