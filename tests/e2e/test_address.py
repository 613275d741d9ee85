"""The address line brings a view back, never carries a picture, and shrugs at nonsense."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Route

from tests.e2e.conftest import OpenPage
from tests.e2e.explore_page import ExplorePage
from tests.e2e.test_pictures import quarters, wait_for_picture

pytestmark = pytest.mark.e2e


def address(explore: ExplorePage, says: str = "") -> dict[str, str]:
    """What the address says once it says this; without it, what it says when the page had time to change it."""
    if says:
        explore.page.wait_for_function("(says) => location.search.includes(says)", arg=says)
    else:
        explore.page.wait_for_timeout(500)
    return {key: values[0] for key, values in parse_qs(urlsplit(explore.page.url).query).items()}


def test_the_first_view_leaves_the_address_as_it_is(explore: ExplorePage) -> None:
    assert address(explore) == {}


def test_a_drawn_mask_comes_back_exactly(explore: ExplorePage, new_page: OpenPage) -> None:
    explore.one(".um-sample").nth(1).click()
    wait_for_picture(explore, "Cat")
    explore.choose("view", "slider")
    explore.drag((3, 2), (9, 11))
    explore.settle()
    # On a busy machine it tells of the mask halfway for a moment.
    explore.page.wait_for_function("location.href === window.unmask.store.link()")
    given = address(explore, "m=")
    assert (given["pic"], given["n"], given["show"]) == ("cat", "14x14", "slider")
    assert set(given) == {"pic", "m", "n", "show"}
    again = new_page()
    again.url = explore.page.url
    again.open()
    assert again.mask == explore.mask
    assert again.canvas() == explore.canvas()
    assert again.strategy == "draw"
    assert again.evaluate("window.unmask.state.picture.title") == "Cat"


def test_a_mask_drawn_on_another_shape_is_carried_over_by_place(new_page: OpenPage) -> None:
    explore = new_page()
    explore.url += "?fit=whole&m=__wA&n=3x7"  # the two upper of three rows
    explore.open()
    assert explore.status == ""
    assert explore.strategy == "draw"
    rows = {i // 14 for i in explore.hidden}
    assert rows == set(range(9))


def test_a_rule_comes_back_by_its_seed(explore: ExplorePage, new_page: OpenPage) -> None:
    explore.choose("strategy", "block")
    explore.press("shuffle")
    explore.settle()
    given = address(explore, f"seed={explore.one('.um-seed').input_value()}")
    assert (given["strategy"], given["ratio"]) == ("block", "0.50")
    again = new_page()
    again.url = explore.page.url
    again.open()
    assert again.mask == explore.mask
    assert again.one(".um-seed").input_value() == given["seed"]


def test_an_own_picture_is_not_in_the_link(explore: ExplorePage) -> None:
    explore.upload("quarters.png", quarters())
    wait_for_picture(explore, "quarters.png")
    explore.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    explore.one(".um-link").click()
    explore.page.wait_for_function("document.querySelector('.um-status-text').textContent !== ''")
    assert explore.status == "The link is copied. Your own picture is not part of it."
    copied = str(explore.evaluate("navigator.clipboard.readText()"))
    assert "quarters" not in copied
    assert "pic=" not in copied
    assert "seed=7" in copied
    # What hides everything has no result, and its link is still that of what is on screen.
    explore.press("hide")
    explore.evaluate("navigator.clipboard.writeText('')")
    # As on a plain address, which is not a secure one.
    explore.evaluate("delete Navigator.prototype.clipboard")
    explore.one(".um-link").click()
    given = address(explore, "m=")
    assert (given["m"], given["n"]) == ("_" * 32 + "8A", "14x14")
    assert explore.status == "The link is copied. Your own picture is not part of it."


HOSTILE = (
    "?pic=../../etc/passwd&strategy=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&ratio=7e9&seed=-1&m=%00%00&n=999x999"
    "&view=${alert(1)}&show=__proto__&fit=%22%3E&model={{constructor}}&paste=2&tab=nowhere"
)


def test_nonsense_in_the_address_is_left_out_and_told(new_page: OpenPage) -> None:
    explore = new_page()
    explore.url += HOSTILE
    explore.open()
    assert explore.status.startswith("Ignored in the address, because not understood:")
    for name in ("pic", "strategy", "ratio", "seed", "m", "view", "show", "fit", "model", "paste"):
        assert name in explore.status
    assert explore.mask.count("1") == 147
    assert explore.page.title() == "Unmask"
    assert explore.one(".um-grid").is_visible()
    explore.click(0, 0)
    explore.settle()
    assert explore.status == ""


def test_a_link_to_a_model_tells_that_it_is_waited_for_and_that_it_cannot_be_had(
    new_page: OpenPage,
) -> None:
    explore = new_page()
    explore.expected = ("Failed to load resource",)
    answers = ["model-loading", "model-unavailable"]

    def untold(route: Route) -> None:  # what its file tells of a model that is not loaded may be little
        models = route.fetch().json()["models"]
        route.fulfill(json={"models": [models[0], *({"name": model["name"]} for model in models[1:])]})

    def answer(route: Route) -> None:
        problem = {"type": f"urn:unmask:problem:{answers.pop(0)}", "status": 503}
        route.fulfill(status=503, headers={"Retry-After": "2"}, json=problem)

    explore.page.route("**/v1/models", untold)
    explore.page.route("**/v1/models/mini-block", answer)
    explore.page.goto(explore.url + "?model=mini-block", wait_until="commit")
    explore.page.wait_for_function(
        "document.querySelector('.um-status-text')?.textContent === 'Model is loading'"
    )
    explore.settle()
    assert explore.status == "This model could not be loaded. The other one stays."
    assert explore.evaluate("window.unmask.store.state.result.answer.model") == "mini"
    explore.click(0, 0)
    explore.settle()
    assert explore.status == ""


def test_back_to_another_tab_keeps_the_address_of_the_view_that_is_shown(explore: ExplorePage) -> None:
    tabs = explore.one("button[role=tab]")
    tabs.nth(1).click()
    explore.page.wait_for_function("location.search.includes('tab=compare')")
    tabs.nth(0).click()
    explore.page.wait_for_function("!location.search.includes('tab=')")
    explore.one(".um-sample").nth(1).click()
    assert address(explore, "pic=cat")
    explore.page.go_back()
    assert address(explore, "tab=compare")["pic"] == "cat"
