"""Drives the Explore tab as a visitor would, and reads back what it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Error, Locator, Page, Request

ARTIFACTS = Path(__file__).parent / "artifacts"

# The result on the right belongs to the mask on the left, and nothing is under way.
SETTLED = """() => {
  const u = window.unmask;
  return u && u.shown && u.shown() && u.state.known && !u.state.incoming && u.client.idle
    && u.shown().hidden.join() === u.grid.indices.join();
}"""

STEADY = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"

# Keeps the text fields of every form sent: the browser does not tell bodies that carry files.
RECORD_FORMS = """window.sent = []; {
  const ask = window.fetch;
  window.fetch = (url, options) => {
    if (options && options.body instanceof FormData)
      window.sent.push([...options.body].filter(([, value]) => typeof value === 'string'));
    return ask(url, options);
  };
}"""


class ExplorePage:
    """One open page. ``problems`` collects what must not happen; ``expected`` names console errors that may."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []
        self.expected: tuple[str, ...] = ()
        self.requests: list[Request] = []
        self.watched = {"console": self._console, "pageerror": self._script_error, "request": self._request}
        for event, note in self.watched.items():
            page.on(event, note)  # type: ignore[call-overload]

    def leave(self) -> None:
        """Leave the tab as it was found, for the next test."""
        for event, note in self.watched.items():
            self.page.remove_listener(event, note)
        self.page.unroute_all(behavior="ignoreErrors")
        self.page.evaluate("localStorage.clear()")
        self.page.goto("about:blank")

    def _script_error(self, error: Error) -> None:
        self.problems.append(f"script error: {error}")

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(part in message.text for part in self.expected):
            self.problems.append(f"console: {message.text}")

    def _request(self, request: Request) -> None:
        self.requests.append(request)
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.problems.append(f"outside request: {request.url}")

    def open(self) -> ExplorePage:
        self.page.goto(self.url, wait_until="commit")
        return self.settle()

    def settle(self) -> ExplorePage:
        self.page.wait_for_function(SETTLED, timeout=90_000)
        return self

    def resize(self, width: int, height: int) -> None:
        """Give the window another size and wait until all is laid out for it."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.steady()

    def steady(self) -> None:
        """Wait until what was changed is drawn."""
        self.page.evaluate(STEADY)

    # --- what is shown -----------------------------------------------------------------------------------

    def one(self, selector: str) -> Locator:
        return self.page.locator(selector)

    @property
    def mask(self) -> str:
        """The mask on the left, a 1 for each hidden patch, row by row."""
        return str(self.page.evaluate("window.unmask.mask()"))

    @property
    def hidden(self) -> set[int]:
        return {i for i, digit in enumerate(self.mask) if digit == "1"}

    @property
    def strategy(self) -> str:
        return str(self.one(".um-strategy input:checked").get_attribute("value"))

    @property
    def status(self) -> str:
        return self.one(".um-status-text").inner_text()

    def canvas(self, selector: str = ".um-result") -> str:
        """The pixels of a canvas, as a data address: equal text, equal picture."""
        return str(self.page.evaluate("(s) => document.querySelector(s).toDataURL()", selector))

    def sent(self) -> list[dict[str, str]]:
        """The text fields of every reconstruct request so far."""
        return [dict(fields) for fields in self.page.evaluate("window.sent")]

    def screenshot(self, name: str, *, full: bool = False) -> None:
        ARTIFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=full)

    # --- what a visitor does --------------------------------------------------------------------------------

    def cell(self, row: int, column: int) -> tuple[float, float]:
        """The middle of a patch on the screen."""
        box = self.one(".um-grid").bounding_box()
        assert box is not None
        return box["x"] + (column + 0.5) * box["width"] / 14, box["y"] + (row + 0.5) * box["height"] / 14

    def click(self, row: int, column: int) -> None:
        self.page.mouse.click(*self.cell(row, column))

    def drag(self, start: tuple[int, int], end: tuple[int, int], steps: int = 6) -> None:
        self.page.mouse.move(*self.cell(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.cell(*end), steps=steps)
        self.page.mouse.up()

    def press(self, *buttons: str) -> None:
        """Press buttons of the control column by their class."""
        for button in buttons:
            self.one(f".um-controls .um-{button}").click()

    def choose(self, group: str, value: str) -> None:
        self.one(f".um-{group} label:has(input[value={value}])").click()

    def upload(self, name: str, content: bytes, kind: str = "image/png") -> None:
        self.one(".um-file").set_input_files({"name": name, "mimeType": kind, "buffer": content})

    def evaluate(self, script: str, argument: object = None) -> Any:
        return self.page.evaluate(script, argument)


def indices(fields: dict[str, str]) -> set[int]:
    return set(json.loads(fields["indices"]))
