"""Kind ``function``: rewards from the user's own code, for answers that can be verified.

The function is called as TRL calls reward functions, with keywords and lists of equal length::

    fn(prompts=[[{"role": "user", "content": "2+2?"}]],
       completions=[[{"role": "assistant", "content": "4"}]],
       prompt_id=["…"], label=["addition"]) -> [1.0]

The artifact holds a hash of the source of the module and of what it imports inside the project:
whoever loads the reward after that has changed is asked to check it anew.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
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
        Hash of the function's source; see :func:`source_sha256`.

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
        """Return the reward of each answer; see :class:`isodense.reward.scoring.load.Reward`.

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
        except (Exception, SystemExit) as error:  # the user's code may raise anything
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
    """Return the function ``module:function`` and the hash of its source.

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
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        message = f"reward.function {name}: importing {module_name} raised {_last(error)}"
        raise TrainingError(message, "modules are looked up from the project's root") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        near = difflib.get_close_matches(attribute, vars(module), n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        message = f"reward.function {name}: {module_name} has no function {attribute!r}{hint}"
        raise TrainingError(message, "correct reward.function")
    if getattr(module, "__file__", None) is None:
        message = f"reward.function {name}: {module_name} has no source file"
        raise TrainingError(message, "put the function into a file of its own")
    return function, source_sha256(module_name, Path.cwd())


def source_sha256(module: str, root: Path) -> str:
    """Return the hash of all that a reward function can be made of, as hex digits.

    These are the files of the module's folder in the project (``rewards/``), data files included,
    and the modules that it imports elsewhere in the project. Of an installed module it is the file.

    Parameters
    ----------
    module : str
        Dotted name; need not be imported yet.
    root : Path
        The project's root. Installed packages and isodense itself do not count.
    """
    folder = root / module.partition(".")[0]
    files = set(source_files(module, root))
    if folder.is_dir():
        files |= {path for path in folder.rglob("*") if path.is_file() and _counts(path)}
    inside = {path: _label(path, root) for path in files}
    lines = sorted(f"{name}:{sha256_file(path)}\n" for path, name in inside.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _label(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _counts(path: Path) -> bool:
    """Return whether a file can shape a reward: no leftovers of editors and of Python."""
    return "__pycache__" not in path.parts and not path.name.startswith(".")


def source_files(module: str, root: Path) -> list[Path]:
    """Return the source file of a module, and those of what it imports inside the project.

    Nothing is imported or run; an installed module is its file alone.
    """
    found: dict[Path, None] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop(0)
        for path in _project_files(name, root):
            if path not in found:
                found[path] = None
                waiting += _imports(path, name)
    return list(found) or _installed(module)


def _project_files(name: str, root: Path) -> list[Path]:
    """Return the file of a module inside the project, and those of the packages that it is in."""
    parts = name.split(".")
    if parts[0] == "isodense" or not all(part.isidentifier() for part in parts):
        return []
    folders = [root.joinpath(*parts[:end]) for end in range(1, len(parts) + 1)]
    files = [*(folder / "__init__.py" for folder in folders), folders[-1].with_suffix(".py")]
    return [path for path in files if path.is_file()]


def _installed(name: str) -> list[Path]:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return []
    return [Path(spec.origin)] if spec and spec.origin and spec.origin.endswith(".py") else []


def _imports(path: Path, name: str) -> list[str]:
    """Return the names of the modules, or of things in them, that a module imports."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except SyntaxError:  # said when it is imported, if it ever is
        return []
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = parents[: max(0, len(parents) + 1 - node.level)] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


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
        raise TrainingError(
            message, "run `dvc repro reward`; with --force if it is not in rewards/"
        )
    return reward


def _last(error: BaseException) -> str:
    """Return the last line of the traceback, and where it happened."""
    text = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError) and error.filename:
        return f"{text} ({Path(error.filename).name}, line {error.lineno})"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if "<" not in one.filename]
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
