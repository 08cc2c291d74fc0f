"""A real headless Chromium for tests of pages: what it says, and what it asks the network for."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SOFTWARE = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "device_scale_factor": 2}


@contextmanager
def browser() -> Iterator[Any]:
    """Give a running browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs a chromium on the PATH")
    with playwright.sync_playwright() as engine:
        running = engine.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE)
        try:
            yield running
        finally:
            running.close()


class Page:
    """A page of a file, with all it says on the console, fails at, asks for or pops up."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        context = browser.new_context(offline=True, **options)
        self.tab = context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.said.append(f"{message.type} {message.text}"))
        self.tab.on("pageerror", lambda error: self.said.append(f"error {error}"))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("dialog", self._dialog)
        self.tab.goto(path.as_uri())

    def _dialog(self, dialog: Any) -> None:
        self.said.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def wait(self, script: str, seconds: float = 30) -> Any:
        """Return the value of `script` once it is truthy.

        Playwright's own way evaluates strings, which the page's policy forbids.
        """
        end = time.monotonic() + seconds
        while not (value := self.tab.evaluate(script)):
            assert time.monotonic() < end, f"{script} is still {value!r}\n{self.said}"
            self.tab.wait_for_timeout(50)
        return value

    @property
    def faults(self) -> list[str]:
        """Errors, warnings and dialogs."""
        return [line for line in self.said if line.split()[0] in ("error", "warning", "dialog")]
