"""A real browser for the tests of HTML pages, and pages opened in it from a file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page, with the errors it wrote and the requests it made since it was opened."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def wait(self) -> None:
        every_plot = "document.querySelectorAll('[data-plot]:not([data-drawn])').length === 0"
        self.page.wait_for_function(f"document.documentElement.dataset.ready && {every_plot}", timeout=60_000)


def opened(browser: Browser, html: str, folder: Path, width: int = 1280, scheme: str = "light") -> Opened:
    path = folder / "report.html"
    path.write_text(html, "utf-8")
    found = Opened(browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme))  # type: ignore[arg-type]
    found.page.goto(path.as_uri())
    found.wait()
    return found
