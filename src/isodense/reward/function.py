"""Kind ``function``: rewards from the user's own code, for answers that can be verified.

The function is called as TRL calls reward functions, with keywords and lists of equal length::

    fn(prompts=[[{"role": "user", "content": "2+2?"}]],
       completions=[[{"role": "assistant", "content": "4"}]],
       prompt_id=["…"], label=["addition"]) -> [1.0]

DVC does not watch the module's source file, so the artifact holds its SHA-256: whoever loads the
reward after the file has changed is told to check it anew.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import sha256_file
from isodense.pipeline.errors import TrainingError
from isodense.prompts.conversations import Message, prompt_id
from isodense.prompts.reader import PromptSet


class FunctionReward:
    """A reward function and the labels that it is given.

    Parameters
    ----------
    name : str
        ``module:function``, the module as seen from the project's root.
    prompts : PromptSet, optional
        Prompts whose labels the function is given; None for all others.

    Attributes
    ----------
    sha256 : str
        Of the module's source file.

    Raises
    ------
    TrainingError
        If there is no such function.
    """

    def __init__(self, name: str, prompts: PromptSet | None = None) -> None:
        self.name = name
        self._function, self.sha256 = find(name)
        rows = prompts.rows if prompts is not None else []
        self._labels = {row["id"]: row.get("label") for row in rows}

    def score(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> np.ndarray:
        """Return the reward of each answer; see :class:`isodense.reward.load.Reward`.

        Raises
        ------
        TrainingError
            If the function raises, or does not return one finite number per answer.
        """
        ids = [prompt_id(prompt) for prompt in prompts]
        try:
            found = self._function(
                prompts=list(prompts),
                completions=[[{"role": "assistant", "content": text}] for text in completions],
                prompt_id=ids,
                label=[self._labels.get(identifier) for identifier in ids],
            )
        except Exception as error:  # the user's own code may raise anything
            raise TrainingError(f"reward.function {self.name} raised {_last(error)}") from error
        return self._checked(found, len(completions))

    def _checked(self, found: Any, count: int) -> np.ndarray:
        try:
            scores = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError):
            scores = np.empty(())
        if scores.shape == (count,) and np.isfinite(scores).all():
            return scores.astype(np.float32)
        if scores.ndim != 1:
            message = f"returned {found!r:.200}, not a list of numbers"
        elif len(scores) != count:
            message = f"returned {len(scores)} numbers for {count} answers"
        else:
            row = int(np.flatnonzero(~np.isfinite(scores))[0])
            message = f"returned {found[row]!r} for answer {row}, not a finite number"
        hint = "let it return a list with one finite number per answer"
        raise TrainingError(f"reward.function {self.name} {message}", hint)


def find(name: str) -> tuple[Callable[..., Any], str]:
    """Return the function ``module:function`` and the SHA-256 of its module's source file.

    Raises
    ------
    TrainingError
        If the module cannot be imported or has no such function.
    """
    module_name, _, attribute = name.partition(":")
    root = str(Path.cwd())
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's own code may raise anything
        message = f"reward.function {name}: importing {module_name} raised {_last(error)}"
        raise TrainingError(message, "modules are looked up from the project's root") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        near = difflib.get_close_matches(attribute, vars(module), n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        message = f"reward.function {name}: {module_name} has no function {attribute!r}{hint}"
        raise TrainingError(message, "correct reward.function")
    source = getattr(module, "__file__", None)
    if source is None:
        message = f"reward.function {name}: {module_name} has no source file"
        raise TrainingError(message, "put the function into a file of its own")
    return function, sha256_file(source)


def load_function(found: dict[str, str], prompts: PromptSet | None) -> FunctionReward:
    """Return the function that a manifest names.

    Raises
    ------
    TrainingError
        If there is no such function, or its file has changed since it was checked.
    """
    reward = FunctionReward(found["name"], prompts)
    if reward.sha256 != found["sha256"]:
        message = f"the source of reward.function {reward.name} has changed since it was checked"
        raise TrainingError(message, "run `dvc repro --force --single-item reward`")
    return reward


def _last(error: BaseException) -> str:
    """Return the last line of the traceback, and where it happened."""
    text = traceback.format_exception_only(error)[-1].strip()
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({Path(where.filename).name}, line {where.lineno})"
