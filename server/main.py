"""Composition root: settings, model, service, API, and the page mounted at `/`.

The only module that sees all three rooms.
"""

import re
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from model import Reconstructor, load
from server import problems
from server.app import create_app
from server.batcher import stand_back
from server.models import Load, Models, find_sources
from server.samples import read_samples
from server.security import PAGE_FOLDERS, PAGE_PATHS, PageMount, is_api, is_served
from server.service import Connect, Service, warm_up
from server.settings import Settings, prepare_environment

if TYPE_CHECKING:
    import gradio
    import jinja2

ICON = Path(__file__).parent.parent / "ui" / "assets" / "icon.svg"

# What the page's library tells others of its pages. Its manifest is of no use: this page is no app to install.
PREVIEWS = re.compile(r"""<(?:meta\s+(?:property="og:|name="twitter:)|link rel="manifest")[^>]*>\s*""")

# Gradio's own queue stands behind the service's; this only bounds what it keeps itself.
PAGE_QUEUE = 32


def build(
    settings: Settings, temporary: Path, load: Load | None = None, connect: Connect | None = None
) -> tuple[FastAPI, Service]:
    """Load the model, and meanwhile import the page; both take seconds.

    Args:
        settings: The service's settings.
        temporary: A private folder for what the page keeps on disk.
        load: Opens a weight file where that is not done here.
        connect: As for `Service`.

    Raises:
        CheckpointError: The weights cannot be used.
    """
    prepare_environment(settings, temporary)
    models = Models(
        find_sources(settings.models), load or partial(load_model, settings), max_bytes=settings.model_bytes
    )
    loading: Future[None] = Future()
    threading.Thread(target=_begin, args=(models, loading), name="unmask-load", daemon=True).start()
    if settings.page:
        import ui.page  # noqa: F401 - pulls gradio, which takes seconds: while the model loads
    loading.result()
    service = Service(models, settings, connect)
    app = create_app(service, settings, read_samples())
    if settings.page:
        from ui.page import build_page, preview
        from ui.theme import build_theme, head

        page = build_page(service.describe())
        mount_page(app, page, settings, preview(), theme=build_theme(), head=head())
    return app, service


def _begin(models: Models, loading: "Future[None]") -> None:
    try:
        stand_back()
        models.load_default()
    except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
        loading.set_exception(error)
    else:
        loading.set_result(None)


def load_model(settings: Settings, path: Path) -> Reconstructor:
    """Open a weight file as the settings say, and run it once."""
    reconstructor = load(
        path,
        settings.device,
        engine=settings.engine,
        precision=settings.precision,
        threads=settings.threads,
    )
    warm_up(reconstructor)
    return reconstructor


def mount_page(
    app: FastAPI, page: "gradio.Blocks", settings: Settings, preview: str = "", **look: Any
) -> FastAPI:
    """Mount the page at `/` with everything closed that it does not need.

    Args:
        app: The API.
        page: The page.
        settings: For limits and the proxy's path.
        preview: Tags of what other places show of a link to the page.
        look: Passed on to gradio: theme, css, head.

    Returns:
        Gradio's own application inside.
    """
    import gradio

    _put_preview(gradio.routes.templates.env, preview)
    page.queue(max_size=PAGE_QUEUE, default_concurrency_limit=1, api_open=False)
    gradio.mount_gradio_app(
        app,
        page,
        path="/",
        root_path=settings.root_path or None,
        max_file_size=settings.max_bytes,
        favicon_path=str(ICON),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        show_error=False,
        pwa=False,
        mcp_server=False,
        **look,
    )
    # Without this flag, which only launch() sets, a posted file path is taken from anywhere on the disk.
    page.has_launched = True
    inside: FastAPI = app.router.routes.pop().app  # type: ignore[attr-defined]
    app.router.routes.append(PageMount("/", app=inside))
    problems.install(inside)
    check_closed(page, inside)
    return inside


def _put_preview(templates: "jinja2.Environment", preview: str) -> None:
    """Put tags in place of what the page's library tells social networks: its own name, picture and address.

    In its template, for what is given as ``head`` is added by a script, which those who make previews do not run.
    """
    import jinja2

    name, loader = "frontend/index.html", templates.loader
    if loader is None:
        return
    source = loader.get_source(templates, name)[0]
    own = jinja2.DictLoader({name: PREVIEWS.sub("", source).replace("<head>", f"<head>{preview}", 1)})
    templates.loader = jinja2.ChoiceLoader([own, loader])


def check_closed(page: "gradio.Blocks", inside: FastAPI) -> None:
    """Refuse to start where the page's library would answer more than it was found to answer safely.

    Args:
        page: The mounted page.
        inside: Gradio's application.

    Raises:
        RuntimeError: A path is open that was not known, or posted file paths would be read.
    """
    known = {*PAGE_PATHS, *(folder + "{path:path}" for folder in PAGE_FOLDERS)}
    # What belongs to the API never reaches the page.
    reached = {
        path for path in paths(inside.routes) if is_served(example := filled(path)) and not is_api(example)
    }
    if unknown := sorted(reached - known):
        raise RuntimeError(f"Gradio answers at {', '.join(unknown)}, which nobody has looked at.")
    if not getattr(page, "has_launched", False):
        raise RuntimeError("Gradio would read files whose path is posted.")


def paths(routes: Iterable[object]) -> Iterator[str]:
    """The paths of routes and of routers inside them, as written in the code."""
    for route in routes:
        if path := getattr(route, "path", ""):
            yield path
        inner = getattr(route, "original_router", route)
        yield from paths(getattr(inner, "routes", None) or ())


def filled(path: str, text: str = "x") -> str:
    """A path of a route with its variables replaced."""
    return re.sub(r"{[^}]*}", lambda _: text, path)
