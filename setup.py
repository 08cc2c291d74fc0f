"""Refuse to be installed where isodense cannot run; everything else is in pyproject.toml."""

import sys

from setuptools import setup

if sys.platform == "win32":
    sys.exit("isodense runs on Linux and macOS. On Windows, install it in WSL.")
setup()
