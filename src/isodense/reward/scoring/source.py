"""The source of reward functions: which files make one, and their hash, taken before any runs.

Whoever loads a reward compares the hash with the manifest's: a reward that has changed since it was
checked is refused before its code runs.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path

from isodense.pipeline.artifact import sha256_file


def source_sha256(module: str, root: Path) -> str:
    """Return the hash of all that a reward function can be made of, as hex digits.

    These are the files of the module's folder in the project (``rewards/``), data files included,
    and the modules that it imports elsewhere in the project. Of an installed module it is the file
    and the version of the distribution that it came with. Nothing in the project is imported.

    Parameters
    ----------
    module : str
        Dotted name; need not be imported yet.
    root : Path
        The project's root. Installed packages and isodense itself do not count.
    """
    folder = root / module.partition(".")[0]
    own = project_files(module, root)
    files = set(own or _installed(module))
    if folder.is_dir():
        files |= {path for path in folder.rglob("*") if path.is_file() and _counts(path)}
    inside = {path: _label(path, root) for path in files}
    lines = sorted(f"{name}:{sha256_file(path)}\n" for path, name in inside.items())
    lines += [] if own else [f"{name}\n" for name in _distributions(module)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _label(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _counts(path: Path) -> bool:
    """Return whether a file can shape a reward: no leftovers of editors and of Python."""
    return "__pycache__" not in path.parts and not path.name.startswith(".")


def project_files(module: str, root: Path) -> list[Path]:
    """Return the source file of a module, and those of what it imports inside the project.

    Nothing is imported or run; of an installed module there is none.
    """
    found: dict[Path, None] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop(0)
        for path in _files_of(name, root):
            if path not in found:
                found[path] = None
                waiting += _imports(path, name)
    return list(found)


def _files_of(name: str, root: Path) -> list[Path]:
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


def _distributions(module: str) -> list[str]:
    """Return name and version of what an installed module came with."""
    names = importlib.metadata.packages_distributions().get(module.partition(".")[0], [])
    return [f"{name}=={importlib.metadata.version(name)}" for name in sorted(set(names))]


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
