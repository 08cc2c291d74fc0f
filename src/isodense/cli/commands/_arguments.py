"""Types of arguments that several commands share, and their JSON."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def add_json(parser: Any) -> None:
    """Add ``--json`` to a command."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def print_json(value: Any) -> None:
    """Print what ``--json`` asks for."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def positive(text: str) -> int:
    """Return the whole number `text`, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def not_negative(text: str) -> int:
    """Return the whole number `text`, at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def share(text: str) -> float:
    """Return the number `text`, from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not from 0 to 1")
    return value
