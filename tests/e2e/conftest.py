"""A real browser on the really served page. Every page is watched: no outside request, no console error."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, ViewportSize, sync_playwright

from tests.conftest import started_server
from tests.e2e.explore_page import RECORD_FORMS, ExplorePage

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

DESKTOP = (1440, 900)
OpenPage = Callable[..., ExplorePage]


# One a file, not one for the session: Playwright keeps a loop running, and other tests want to start their own.
@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright, browser_path: str) -> Iterator[Browser]:
    """For contexts of its own, whose caches are empty."""
    chromium = playwright.chromium.launch(executable_path=browser_path, args=list(ARGUMENTS))
    yield chromium
    chromium.close()


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def warm(playwright: Playwright, browser_path: str, profile: Path) -> Iterator[BrowserContext]:
    """A visitor who was here before: loading Gradio takes most of a test's time, and here it lies compiled.

    On disk; and in the memory of the one tab that a file's tests use one after the other.
    """
    context = playwright.chromium.launch_persistent_context(
        profile, executable_path=browser_path, args=list(ARGUMENTS), locale="en-GB", accept_downloads=True
    )
    context.add_init_script(RECORD_FORMS)
    yield context
    context.close()


@pytest.fixture(scope="module")
def shared_page(
    request: pytest.FixtureRequest, server_url: str, held: set[Page], warm: BrowserContext
) -> Iterator[OpenPage]:
    """Makes what `new_page` does, for several tests that look at it one after the other and leave it as it was.

    It asks for `warm`, so that this outlives its page.
    """
    with _pages(request, server_url, held) as make:
        yield make


@pytest.fixture
def new_page(request: pytest.FixtureRequest, server_url: str, held: set[Page]) -> Iterator[OpenPage]:
    """Makes a page that is not opened yet: new_page(size=..., scheme=..., touch=..., locale=..., url=..., cold=...)."""
    with _pages(request, server_url, held) as make:
        yield make


@pytest.fixture(scope="module")
def held() -> set[Page]:
    """The tabs that are in use."""
    return set()


@contextmanager
def _pages(request: pytest.FixtureRequest, server_url: str, held: set[Page]) -> Iterator[OpenPage]:
    pages: list[ExplorePage] = []
    with ExitStack() as stack:

        def make(
            size: tuple[int, int] = DESKTOP,
            scheme: str = "light",
            *,
            touch: bool = False,
            cold: bool = False,
            locale: str = "",
            url: str = server_url,
        ) -> ExplorePage:
            viewport: ViewportSize = {"width": size[0], "height": size[1]}
            if touch or cold or locale:
                browser: Browser = request.getfixturevalue("browser")
                context: BrowserContext = browser.new_context(
                    viewport=viewport, has_touch=touch, is_mobile=touch, locale=locale or "en-GB"
                )
                context.add_init_script(RECORD_FORMS)
                stack.callback(context.close)
                page = context.new_page()
            else:
                context = request.getfixturevalue("warm")
                page = next((page for page in context.pages if page not in held), None) or context.new_page()
            page.set_viewport_size(viewport)
            page.emulate_media(
                color_scheme="dark" if scheme == "dark" else "light",
                reduced_motion="null",
                forced_colors="null",
            )
            page.set_default_timeout(90_000)
            pages.append(ExplorePage(page, url + "/"))
            held.add(page)
            stack.callback(held.remove, page)
            stack.callback(pages[-1].leave)
            return pages[-1]

        yield make
    assert [problem for page in pages for problem in page.problems] == []


@pytest.fixture(scope="session")
def two_models_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the shipped model and a tiny untrained one of normalised pixels, which has every view."""
    import torch

    from model.checkpoints import store
    from model.config import SIZES
    from model.loading import prove
    from model.network import MAE

    folder = tmp_path_factory.mktemp("models")
    config = dataclasses.replace(SIZES["debug"], target="norm_pixel_stats", image_size=96, patch_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        store.write(folder / "other.safetensors", MAE(config), name="other", card={"licence": "none"})
    prove(folder / "other.safetensors")  # so that the server needs no torch
    models = f"mini-random,other={folder / 'other.safetensors'}"
    with started_server(folder / "server.log", UNMASK_MODELS=models) as url:
        yield url


@pytest.fixture
def explore(new_page: OpenPage) -> ExplorePage:
    """The page on a desktop, its first result shown."""
    return new_page().open()


class Line:
    """A line between browser and server that can be cut and mended: the server's address stays the same."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self.target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.listener: socket.socket | None = None
        self.open: set[socket.socket] = set()
        self.port = 0
        self.mend()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def mend(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port), reuse_port=True)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self) -> None:
        if self.listener:
            with suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
            self.listener.close()
            self.listener = None
        for end in list(self.open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self.target)
                self.open |= {near, far}
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.open.discard(source)
        source.close()


@pytest.fixture
def line(server_url: str) -> Iterator[Line]:
    line = Line(server_url)
    yield line
    line.cut()
