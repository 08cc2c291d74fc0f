"""One reward function: found by its name, hashed before it runs, given what its signature takes.

It is called as TRL calls reward functions, with keywords and lists of equal length::

    fn(prompts=[[{"role": "user", "content": "2+2?"}]],
       completions=[[{"role": "assistant", "content": "4"}]],
       completion_ids=[[24, 2]], prompt_id=["…"], solution=["4"],
       trainer_state=…, log_extra=…, log_metric=…) -> [1.0]

where ``solution`` stands for every column of the data. A function without ``**kwargs`` gets what it
names. None in place of a number means that the function has no opinion on that completion.

A callable that takes none of ``prompts``, ``completions``, ``completion_ids`` and ``**kwargs``, or
that is a class, is a factory: it is called once, with the ``args`` of ``params.yaml``, and what it
returns is the function. To any other callable ``args`` are passed at each call.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.errors import TrainingError
from isodense.reward.scoring.source import source_sha256

COMPLETION = ("prompts", "completions", "completion_ids")
GIVEN = (*COMPLETION, "prompt_id", "trainer_state", "log_extra", "log_metric")
MATH = ("trl.rewards.accuracy_rewards", "math_verify")  # TRL's module, and what it needs
FAULTS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)  # of one row
RETURN = "let it return a list with one finite number, or None for no opinion, per completion"


class RewardFunction:
    """A reward function with its weight and arguments.

    Parameters
    ----------
    name : str
        ``module:function``, the module as seen from the project's root, or an installed one.
    label : str
        Names its rewards in metrics and logs.
    weight : float
        Its share of the total reward.
    args : mapping of str to Any
        Further arguments, by keyword.
    sha256 : str, optional
        The hash that its source has to have, or it is not run.

    Attributes
    ----------
    sha256 : str
        Hash of its source; see :func:`isodense.reward.scoring.source.source_sha256`.
    awaited : bool
        Whether it is a coroutine function.

    Raises
    ------
    TrainingError
        If there is no such function, it has changed, or it does not take its arguments.
    """

    def __init__(
        self,
        name: str,
        label: str = "reward",
        weight: float = 1.0,
        args: Mapping[str, Any] | None = None,
        sha256: str | None = None,
    ) -> None:
        self.name, self.label, self.weight, self.args = name, label, weight, dict(args or {})
        self.sha256 = source_sha256(name.partition(":")[0], Path.cwd())
        if sha256 not in (None, self.sha256):
            message = f"the source of {self} has changed since it was checked"
            hint = "run `dvc repro reward`; with --force if it is not in rewards/"
            raise TrainingError(message, hint)
        found = self._find()
        self._given = self.args
        if _is_factory(found):
            found, self._given = self._made_by(found), {}
        self._function = found
        self._takes, self._takes_all = _parameters(found)
        self._refuse_arguments()
        self.awaited = any(map(inspect.iscoroutinefunction, (found, getattr(found, "__call__"))))  # noqa: B004, B009

    def __str__(self) -> str:
        return f"reward.functions: {self.name}"

    def needs(self) -> list[str]:
        """Return the columns that it cannot be called without."""
        return [
            name
            for name, parameter in self._takes.items()
            if parameter.default is parameter.empty
            and name not in GIVEN
            and name not in self._given
        ]

    def takes(self, name: str) -> bool:
        """Return whether it is given the keyword `name`."""
        return self._takes_all or name in self._takes

    def names(self, name: str) -> bool:
        """Return whether `name` stands in its signature."""
        return name in self._takes

    def __call__(self, given: Mapping[str, Any]) -> Any:
        """Call it with those of the keywords that it takes; a coroutine function's is awaited.

        Parameters
        ----------
        given : mapping of str to Any
            ``prompt_id`` and what else there is: columns, as lists of equal length.

        Returns
        -------
        ndarray of shape (n,), float32, or a coroutine that returns it
            NaN where the function has no opinion.

        Raises
        ------
        TrainingError
            If it raises, or returns anything but a finite number or None for each completion.
        """
        if self.awaited:
            return self._await(given)
        try:
            found = self._function(**self._keywords(given))
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise self._raised(error, self._culprit(error, given)) from error
        return self._checked(found, given["prompt_id"])

    async def _await(self, given: Mapping[str, Any]) -> np.ndarray:
        try:
            found = await self._function(**self._keywords(given))
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise self._raised(error, _among(given["prompt_id"])) from error
        return self._checked(found, given["prompt_id"])

    def _keywords(self, given: Mapping[str, Any]) -> dict[str, Any]:
        taken = {name: value for name, value in given.items() if self.takes(name)}
        return taken | self._given

    def _find(self) -> Callable[..., Any]:
        module_name, _, attribute = self.name.partition(":")
        root = str(Path.cwd())
        if root not in sys.path:
            sys.path.insert(0, root)
        try:
            module = importlib.import_module(module_name)
            found = getattr(module, attribute, None)  # may import more, in a lazy module
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            message = f"{self}: importing {module_name} raised {_last(error)}"
            hint = "modules are looked up from the project's root"
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if f"{module_name}.".startswith(f"{missing}."):  # itself, not what it imports
                message = f"{self}: there is no module {module_name}"
                hint = f"write {module_name.replace('.', '/')}.py, or correct reward.functions"
            raise TrainingError(message, hint) from error
        if not callable(found):
            near = difflib.get_close_matches(attribute, dir(module), n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            message = f"{self}: {module_name} has no function {attribute!r}{hint}"
            raise TrainingError(message, "correct reward.functions")
        if getattr(module, "__file__", None) is None:
            message = f"{self}: {module_name} has no source file"
            raise TrainingError(message, "put the function into a file of its own")
        if found.__module__ == MATH[0] and importlib.util.find_spec(MATH[1]) is None:
            raise TrainingError(f"{self} needs math-verify", "pip install 'isodense[math]'")
        return found

    def _made_by(self, factory: Callable[..., Any]) -> Callable[..., Any]:
        try:
            made = factory(**self.args)
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            message = f"{self} with args {self.args} raised {_last(error)}"
            hint = "it takes no completions, so it was called with its args to make the function"
            raise TrainingError(message, f"{hint}; correct one of the two") from error
        if not callable(made):
            message = f"{self} with args {self.args} returned {made!r:.200}, not a function"
            raise TrainingError(message, "let it take completions, or return what does")
        return made

    def _refuse_arguments(self) -> None:
        """Raise of args that it does not take, or that would stand for what TRL passes."""
        wrong = [name for name in self._given if name in GIVEN or not self.takes(name)]
        if wrong:
            near = difflib.get_close_matches(wrong[0], list(self._takes), n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            message = f"{self} takes no argument {wrong[0]!r}{hint}"
            raise TrainingError(message, "correct its args in reward.functions")

    def _culprit(self, error: BaseException, given: Mapping[str, Any]) -> str:
        """Return the words for the prompt at which it raises, found by calling it row by row."""
        ids = given["prompt_id"]
        for row in range(len(ids) if len(ids) > 1 and isinstance(error, FAULTS) else 0):
            one = {k: v[row : row + 1] if isinstance(v, list) else v for k, v in given.items()}
            try:
                self._function(**self._keywords(one))
            except FAULTS:
                return f"for prompt {ids[row]}"
        return _among(ids)

    def _raised(self, error: BaseException, where: str) -> TrainingError:
        message = f"{self} raised {_last(error)} {where}"
        return TrainingError(message, "correct it; `isodense explain ID` shows a prompt")

    def _checked(self, found: Any, ids: Sequence[str]) -> np.ndarray:
        """Return the rewards as an array, NaN for None."""
        values = None if isinstance(found, str | bytes | Mapping) else _as_list(found)
        if values is None:
            message = f"returned {found!r:.200}, not a list of numbers"
        elif len(values) != len(ids):
            message = f"returned {len(values)} numbers for {len(ids)} completions"
        else:
            scores = [math.nan if value is None else _number(value) for value in values]
            wrong = [
                row
                for row, score in enumerate(scores)
                if score is None or (values[row] is not None and not math.isfinite(score))
            ]
            if not wrong:
                return np.array(scores, dtype=np.float32)
            row = wrong[0]
            message = f"returned {values[row]!r:.200} for completion {row}, prompt {ids[row]}"
            if _as_list(values[row]) and not isinstance(values[row], str | bytes):
                hint = "a completion has one reward: return the sum or the mean of its messages'"
                raise TrainingError(f"{self} {message}", hint)
        raise TrainingError(f"{self} {message}", RETURN)


def _is_factory(found: Callable[..., Any]) -> bool:
    takes, takes_all = _parameters(found)
    return inspect.isclass(found) or not (takes_all or any(name in takes for name in COMPLETION))


def _parameters(found: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the parameters that can be given by keyword, and whether it takes any keyword."""
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (ValueError, TypeError):  # of C code, which may not say
        return {}, True
    by_name = {
        one.name: one
        for one in parameters
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }
    return by_name, any(one.kind == one.VAR_KEYWORD for one in parameters)


def _as_list(found: Any) -> list[Any] | None:
    try:
        return list(found)
    except TypeError:
        return None


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _among(ids: Sequence[str]) -> str:
    if len(set(ids)) == 1:
        return f"for prompt {ids[0]}"
    return f"for {len(ids)} completions, the first of prompt {ids[0]}" if ids else "for no prompt"


def _last(error: BaseException) -> str:
    """Return the last line of the traceback, and where it happened."""
    text = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError) and error.filename:
        return f"{text} ({Path(error.filename).name}, line {error.lineno})"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if "<" not in one.filename]
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
