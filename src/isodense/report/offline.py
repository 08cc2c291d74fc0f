"""A page for ``dvc plots`` that needs no network.

The page that DVC writes loads Vega, which draws the plots, from a server, and stays blank without
one. DVC takes another page from the setting ``plots.html_template``. The one made here holds Vega,
Vega-Lite and Vega-Embed itself, out of the package vl-convert-python, and forbids the browser any
request. It follows the reader's light or dark mode, and puts plots side by side.
"""

from __future__ import annotations

import importlib.resources
import subprocess
import sys
from pathlib import Path

from isodense.pipeline.artifact import replacing
from isodense.pipeline.errors import IsodenseError

PAGE = Path("plots") / "offline.html"  # in .dvc
SETTING = "plots.html_template"
FILLED = ("{plot_divs}", "{refresh_tag}")  # by DVC, which replaces them wherever they stand
LOADED = "{scripts}"  # what DVC would put here is loaded from a server


def install(root: Path) -> Path:
    """Write the page into a project's ``.dvc`` folder, and have this clone's DVC use it.

    Parameters
    ----------
    root : Path
        The project's folder.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    IsodenseError
        If `root` is not a DVC project, or vl-convert-python is not installed.
    """
    if not (root / ".dvc").is_dir():
        raise IsodenseError(f"{root.resolve()} has no .dvc", "run it in the root of the project")
    path = root / ".dvc" / PAGE
    text = page(_bundle())
    with replacing(path) as staging:
        staging.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "dvc", "config", "--local", SETTING, PAGE.as_posix()]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise IsodenseError(f"`dvc config` failed: {done.stderr.strip()}", "see .dvc/config.local")
    return path


def page(bundle: str) -> str:
    """Return the page for DVC to fill in, with the libraries in it.

    Parameters
    ----------
    bundle : str
        JavaScript that sets ``window.vegaEmbed``.

    Raises
    ------
    IsodenseError
        If the bundle holds what DVC or a browser would take for something else than JavaScript.
    """
    wrong = [mark for mark in (*FILLED, LOADED, "</script", "<!--") if mark in bundle]
    if wrong:
        message = f"the JavaScript of this vl-convert-python contains {', '.join(wrong)}"
        raise IsodenseError(message, "install the version in requirements.lock")
    text = importlib.resources.files("isodense.report").joinpath("offline.html").read_text("utf-8")
    return text.replace("/* libraries */", bundle)


def _bundle() -> str:
    try:
        import vl_convert
    except ModuleNotFoundError:
        message = "vl-convert-python, which holds the libraries that draw the plots, is missing"
        raise IsodenseError(message, "pip install 'isodense[plots]'") from None
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
