"""When the server is busy or gone: the mask is kept, it is said once, and the page comes back by itself."""

from __future__ import annotations

import time

import pytest
from playwright.sync_api import Route

from tests.e2e.conftest import Line, OpenPage
from tests.e2e.explore_page import ExplorePage, indices
from tests.e2e.test_pictures import wait_for_picture

pytestmark = pytest.mark.e2e


def test_a_lost_server_costs_no_mask_and_the_page_recovers(new_page: OpenPage, line: Line) -> None:
    explore = new_page(url=line.url).open()
    explore.expected = ("Failed to load resource", "ERR_", "fetch")
    explore.press("show")
    line.cut()
    explore.drag((3, 3), (3, 8))
    explore.one(".um-again").wait_for()
    assert explore.status == "No answer from the server. Your mask is kept."
    assert explore.one(".um-badge").is_visible(), "the picture belongs to an older mask"
    explore.screenshot("offline")
    explore.drag((4, 3), (4, 8))
    kept = explore.mask
    assert kept.count("1") == 12
    line.mend()
    explore.settle()
    assert explore.mask == kept
    assert indices(explore.sent()[-1]) == explore.hidden
    assert explore.status == ""
    assert not explore.one(".um-again").is_visible()
    assert not explore.one(".um-badge").is_visible()


def test_what_takes_longer_than_a_second_tells_its_place_in_the_line(explore: ExplorePage) -> None:
    held: list[Route] = []
    asked: list[str] = []

    def hold(route: Route) -> None:
        held.append(route)

    def line(route: Route) -> None:
        asked.append(route.request.url.split("request=")[1])
        route.fulfill(json={"admitted": 4, "before": 2, "estimate_ms": 2600})

    explore.evaluate(
        "() => { const ask = window.fetch; window.times = [];"
        " window.fetch = (...all) => { window.times.push(performance.now()); return ask(...all); }; }"
    )
    explore.page.route("**/v1/queue*", line)
    explore.page.route("**/v1/reconstruct", hold)
    explore.click(5, 5)
    explore.page.wait_for_function(
        "document.querySelector('.um-status-text').textContent === 'Still working. 2 before you, about 3 s.'"
    )
    assert held[0].request.headers["x-request-id"] == asked[0]
    first, second = explore.evaluate("window.times.slice(0, 2)")
    assert second - first > 800, "a quick answer is never asked about"
    assert explore.one(".um-stop").is_visible()
    explore.screenshot("queue")
    explore.one(".um-language").click()
    explore.page.wait_for_function(
        "document.querySelector('.um-status-text').textContent.includes('前面还有 2 个请求')"
    )
    held[0].continue_()
    explore.settle()
    assert explore.status == ""


def test_a_busy_server_is_given_the_time_it_asks_for(explore: ExplorePage) -> None:
    explore.expected = ("Failed to load resource",)
    times: list[float] = []

    def busy_once(route: Route) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            route.fulfill(status=503, headers={"Retry-After": "8"}, json={"type": "busy", "status": 503})
        else:
            route.continue_()

    explore.page.route("**/v1/reconstruct", busy_once)
    explore.click(3, 3)
    explore.page.wait_for_function(
        "document.querySelector('.um-status-text').textContent.includes('Trying again')"
    )
    for column in range(5):
        explore.click(9, column)
    explore.settle()
    assert len(times) == 2, "edits meanwhile do not hammer: the newest mask goes once"
    assert times[1] - times[0] >= 8
    assert indices(explore.sent()[-1]) == explore.hidden


def test_who_sends_too_much_is_told_so_and_sees_what_is_shown(explore: ExplorePage) -> None:
    explore.expected = ("Failed to load resource",)
    explore.page.route(
        "**/v1/reconstruct",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "4"}, json={"status": 429}),
    )
    explore.one("#um-ratio").evaluate(
        "(node) => { node.value = 40; node.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    told = "() => Number(document.querySelector('.um-status-text').textContent.match(/You sent more.* (\\d+) s/)?.[1])"
    first = explore.page.wait_for_function(told).json_value()
    explore.page.wait_for_function(f"(first) => ({told})() < first", arg=first)
    assert explore.one(".um-count").inner_text() == "147 of 196 patches hidden", "as the grid shows"
    assert explore.one(".um-badge").is_visible()
    explore.one(".um-sample").nth(1).click()
    assert "You sent more than this server allows" in explore.status, "another picture waits as well"
    explore.page.unroute("**/v1/reconstruct")
    explore.page.wait_for_function("window.unmask.state.picture.title === 'Cat'")
    explore.settle()
    assert (explore.status, len(explore.hidden)) == ("", 79)


def model_problem(problem: str) -> dict[str, object]:
    """The answer about a model, as server/problems.py gives it."""
    detail = "The model 'mini' cannot be loaded; the log of the service says why."
    return {"type": f"urn:unmask:problem:{problem}", "status": 503, "detail": detail}


def test_a_model_is_waited_for_while_it_is_loaded_and_not_where_it_cannot_be_had(
    explore: ExplorePage,
) -> None:
    explore.expected = ("Failed to load resource",)
    answers = ["model-loading", "model-unavailable"]

    def answer(route: Route) -> None:
        if answers:
            headers = {"Retry-After": "2"}
            route.fulfill(status=503, headers=headers, json=model_problem(answers.pop(0)))
        else:
            route.continue_()

    explore.page.route("**/v1/reconstruct", answer)
    explore.click(3, 3)
    explore.page.wait_for_function(
        "document.querySelector('.um-status-text').textContent === 'Model is loading'"
    )
    explore.one(".um-status.um-error").wait_for()
    assert "The model 'mini' cannot be loaded" in explore.status
    assert explore.one(".um-badge").is_visible()
    explore.click(5, 5)
    explore.settle()
    assert explore.status == ""


def test_a_refusal_is_said_in_the_servers_words_as_text(explore: ExplorePage) -> None:
    explore.expected = ("Failed to load resource",)
    detail = "<img src=x onerror=document.title='owned'> no"
    explore.page.route("**/v1/reconstruct", lambda route: route.fulfill(status=422, json={"detail": detail}))
    mask = explore.mask
    explore.press("invert")
    explore.one(".um-status.um-error").wait_for()
    assert detail in explore.status
    assert explore.page.title() == "Unmask"
    explore.page.unroute("**/v1/reconstruct")
    explore.page.keyboard.press("Control+z")
    explore.settle()
    assert explore.mask == mask


def test_on_a_phone_what_went_wrong_stands_above_the_bar_at_the_bottom(new_page: OpenPage) -> None:
    explore = new_page((390, 844), touch=True).open()
    explore.expected = ("Failed to load resource",)
    explore.page.route("**/v1/reconstruct", lambda route: route.abort())
    explore.one(".um-sticky .um-shuffle").click()
    explore.one(".um-again").wait_for()
    line, bar = (explore.one(s).bounding_box() for s in (".um-status", ".um-sticky"))
    assert line is not None
    assert bar is not None
    assert line["y"] + line["height"] <= bar["y"]


def test_a_slow_answer_shows_a_bar_and_can_be_stopped(explore: ExplorePage) -> None:
    explore.page.route("**/v1/reconstruct", lambda route: None)
    before = explore.canvas()
    explore.click(3, 3)
    explore.one(".um-bar").wait_for()
    explore.one(".um-stop").wait_for()
    assert explore.status == "Still working"
    assert explore.canvas() == before, "the old picture stays"
    explore.one(".um-stop").click()
    assert explore.status == "Stopped. Your mask is kept."
    explore.page.unroute("**/v1/reconstruct")
    explore.one(".um-again").click()
    explore.settle()
    assert explore.status == ""


def test_an_answer_for_the_old_picture_never_shows_on_the_new(explore: ExplorePage) -> None:
    held: list[Route] = []

    def hold_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    explore.page.route("**/v1/reconstruct", hold_first)
    with explore.page.expect_request("**/v1/reconstruct"):
        explore.click(3, 3)
    explore.one(".um-sample").nth(1).click()
    wait_for_picture(explore, "Cat")
    assert explore.evaluate("window.unmask.shown().title") == "Cat"


def test_the_old_picture_is_marked_where_a_new_model_gives_none(new_page: OpenPage) -> None:
    explore = new_page((1280, 720)).open()
    explore.expected = ("Failed to load resource", "ERR_")
    explore.one(".um-models select").wait_for()
    explore.page.route("**/v1/reconstruct", lambda route: route.abort())
    explore.one(".um-models select").select_option("mini-block")
    explore.one(".um-again").wait_for(timeout=60_000)
    assert explore.one(".um-badge").is_visible(), "the mask is the same, the model is not"
    line = explore.one(".um-status").bounding_box()
    assert line is not None
    assert line["y"] + line["height"] <= 720, "said in sight"
    explore.one("button[role=tab]").nth(3).click()
    explore.one(".um-use-code:not(:empty)").wait_for()
    assert explore.one(".um-use-now").inner_text().endswith("model mini.")
    assert "mini-block" not in explore.one(".um-use-code").inner_text()
    explore.page.unroute("**/v1/reconstruct")
    explore.page.wait_for_function(
        "document.querySelector('.um-use-now').textContent.endsWith('model mini-block.')", timeout=60_000
    )
    assert explore.one(".um-badge").is_hidden()
    explore.page.route("**/v1/models/*", lambda route: route.abort())
    explore.evaluate(
        "window.unmask.store.set({models: window.unmask.store.state.models.map(({views, ...one}) => one)})"
    )
    explore.one(".um-models select").select_option("mini-grid")
    explore.one(".um-model-failed:not(:empty)").wait_for()
    assert "could not be loaded" in explore.one(".um-model-failed").inner_text()
    assert explore.one(".um-models select").input_value() == "mini-block"


def test_the_first_example_is_asked_for_until_it_comes(new_page: OpenPage) -> None:
    explore = new_page()
    explore.expected = ("Failed to load resource", "ERR_")
    asked: list[Route] = []

    def grudging(route: Route) -> None:
        asked.append(route)
        if len(asked) == 1:
            route.abort()
        elif len(asked) == 2:
            route.fulfill(status=429, headers={"Retry-After": "2"}, json={"status": 429})
        else:
            route.continue_()

    explore.page.route("**/v1/samples/*", grudging)
    explore.page.goto(explore.url, wait_until="commit")
    said = "document.querySelector('.um-status-text')?.textContent"
    explore.page.wait_for_function(f"{said}?.startsWith('No answer from the server. Trying again')")
    explore.page.wait_for_function(f"{said}.startsWith('You sent more')")
    explore.settle()
    assert (len(asked), explore.status) == (3, "")


def test_what_takes_too_long_is_told_as_that(explore: ExplorePage) -> None:
    explore.expected = ("Failed to load resource",)
    explore.page.route("**/v1/reconstruct", lambda route: route.fulfill(status=504, json={"status": 504}))
    explore.click(3, 3)
    explore.one(".um-again").wait_for()
    assert explore.status == "This took too long and was stopped. Your mask is kept."
    assert explore.one(".um-badge").is_visible()
