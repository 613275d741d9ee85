"""Uncertainty, whole pictures, things to try, and several models."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.e2e.conftest import OpenPage
from tests.e2e.explore_page import SETTLED, ExplorePage
from tests.e2e.test_pictures import wait_for_picture

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


LOADING = 240_000  # a model that is chosen for the first time; two seconds on a quiet desk


def striped(size: tuple[int, int]) -> bytes:
    """A wide or tall picture, red at its beginning and blue at its end."""
    picture = Image.linear_gradient("L").rotate(90 if size[0] > size[1] else 0).resize(size)
    file = io.BytesIO()
    Image.merge("RGB", (picture.point(lambda v: 255 - v), picture.point(lambda _: 60), picture)).save(
        file, "PNG"
    )
    return file.getvalue()


def test_only_the_main_thing_is_hidden(explore: ExplorePage) -> None:
    explore.one(".um-try-main").click()
    explore.settle()
    assert explore.strategy == "draw"
    rows = {i // 14 for i in explore.hidden}
    columns = {i % 14 for i in explore.hidden}
    assert rows == set(range(10)), "the cup, from the upper border on"
    assert columns == set(range(2, 12))
    assert explore.one(".um-try-main").evaluate("(node) => node === document.activeElement")


def test_little_is_left_and_random_turns_into_a_block_and_back(explore: ExplorePage) -> None:
    explore.one(".um-try-little").click()
    explore.settle()
    assert (explore.strategy, len(explore.hidden)) == ("random", 177)
    explore.one(".um-try-block").click()
    explore.settle()
    assert (explore.strategy, len(explore.hidden)) == ("block", 147)
    explore.one(".um-try-block").click()
    explore.settle()
    assert (explore.strategy, len(explore.hidden)) == ("random", 147)


def test_uncertainty_is_shown_with_its_scale(explore: ExplorePage) -> None:
    result = explore.canvas()
    explore.choose("view", "uncertainty")
    explore.page.wait_for_function("window.unmask.shown().spread", timeout=60_000)
    assert explore.canvas() != result
    sent = explore.sent()[-1]
    assert (sent["cover"], sent["panels"]) == ("ensemble", "uncertainty")
    assert explore.one(".um-legend-title").inner_text().startswith("Where 8 masks of this kind")
    assert len(explore.one(".um-ticks span").all_inner_texts()) == 3
    explore.screenshot("view-uncertainty")
    explore.click(3, 3)
    explore.settle()
    assert "Choose Random" in explore.one(".um-view-hint").inner_text(), "a drawn mask has no others like it"
    assert explore.one(".um-view input:checked").get_attribute("value") == "result"
    assert (explore.one(".um-result").get_attribute("aria-label") or "").startswith(
        "Reconstruction of Coffee"
    )
    assert not explore.one(".um-legend").is_visible()
    assert "uncertainty" not in explore.evaluate("JSON.stringify(window.unmask.store.request())"), "nor saved"
    explore.press("undo")
    explore.page.wait_for_function("window.unmask.shown().spread", timeout=60_000)
    assert explore.one(".um-view input:checked").get_attribute("value") == "uncertainty", "as it was"
    explore.one(".um-try-main").click()
    explore.settle()
    explore.choose("view", "result")
    explore.press("shuffle")
    explore.settle()
    assert explore.one(".um-view input:checked").get_attribute("value") == "result", "what was chosen last"


def test_a_wide_picture_can_be_seen_whole_or_by_a_square_that_moves(explore: ExplorePage) -> None:
    explore.upload("wide.png", striped((640, 320)))
    wait_for_picture(explore, "wide.png")
    middle = explore.canvas()
    move = explore.one(".um-move-range")
    assert move.get_attribute("aria-valuetext") == "50%"
    move.press("End")
    assert move.get_attribute("aria-valuetext") == "100%"
    explore.page.wait_for_function(
        "window.unmask.state.incoming === null && window.unmask.state.crop === '320,0,320'"
    )
    explore.settle()
    assert explore.canvas() != middle
    explore.one(".um-whole-row").click()
    explore.page.wait_for_function("window.unmask.grid.total !== 196", timeout=60_000)
    explore.settle()
    box = explore.one(".um-grid").bounding_box()
    assert box is not None
    assert 1.9 < box["width"] / box["height"] < 2.1
    assert explore.evaluate("document.querySelector('.um-result').width") > 224
    hidden = len(explore.hidden)
    explore.one(".um-grid").click(position={"x": 4, "y": 4})
    explore.settle()
    assert abs(len(explore.hidden) - hidden) == 1
    assert "grid" in explore.sent()[-1]
    explore.screenshot("whole-picture")
    explore.one(".um-whole-row").click()
    explore.page.wait_for_function("window.unmask.grid.total === 196", timeout=60_000)
    explore.settle()
    assert explore.strategy == "draw", "a drawn mask is carried over"


def test_each_arrow_key_moves_the_square_of_a_nearly_square_picture(explore: ExplorePage) -> None:
    explore.upload("nearly.png", striped((324, 320)))
    wait_for_picture(explore, "nearly.png")
    for left in (3, 4):
        explore.one(".um-move-range").press("ArrowRight")
        explore.page.wait_for_function(
            "(crop) => window.unmask.state.incoming === null && window.unmask.state.crop === crop",
            arg=f"{left},0,320",
        )


def test_another_model_brings_its_grid_and_its_honest_views(new_page: OpenPage, two_models_url: str) -> None:
    explore = new_page(url=two_models_url).open()
    explore.expected = ("status of 503",)  # a busy machine still loads the model
    explore.one(".um-models select").wait_for()
    assert not explore.one(".um-honest").is_visible(), "a model of pixels has one view"
    explore.one(".um-models select").select_option("other")
    explore.page.wait_for_function("window.unmask.grid.total === 36", timeout=LOADING)
    explore.settle()
    assert explore.sent()[-1]["model"] == "other"
    assert explore.one(".um-honest summary").inner_text() == "How to show normalised pixels: Predicted"
    assert not explore.one(".um-honest-hint").is_visible(), "folded away until asked for"
    explore.one(".um-honest summary").click()
    assert explore.one(".um-honest span").all_inner_texts() == [
        "Predicted", "Estimated", "Contrast", "With the answer",
    ]  # fmt: skip
    assert explore.evaluate("window.unmask.shown().answer.view") == "predicted", "the best honest one first"
    assert "Nothing hidden is used" in explore.one(".um-honest-hint").inner_text()
    seen = {explore.canvas()}
    for view in ("estimated", "oracle"):
        explore.choose("honest", view)
        explore.settle()
        explore.page.wait_for_function("(view) => window.unmask.shown().answer.view === view", arg=view)
        seen.add(explore.canvas())
    assert len(seen) == 3
    assert "uses the answer" in explore.one(".um-honest-hint").inner_text()
    explore.screenshot("honest-views")
    for said in ("model=other", "view=oracle"):
        explore.page.wait_for_function("(said) => location.search.includes(said)", arg=said)
    again = new_page(url=two_models_url)
    again.url = explore.page.url
    again.open()
    assert again.mask == explore.mask
    assert again.canvas() == explore.canvas()
    again.one("button[role=tab]").nth(1).click()
    row = again.one(".um-row-models")
    row.locator(".um-go").click()
    again.page.wait_for_function(
        "document.querySelectorAll('.um-row-models .um-figure img').length === 4", timeout=60_000
    )
    assert row.locator("figcaption b").all_inner_texts() == [
        "What other sees", "other", "What mini-random sees", "mini-random",
    ]  # fmt: skip
    caption = again.one(".um-row-ratios figcaption").first
    assert "(uses the answer)" in caption.inner_text(), "no figure stands beside honest ones without a word"
    asked = [fields for fields in again.sent() if fields["panels"].startswith("masked,pasted,error")]
    assert [(fields["model"], fields.get("view")) for fields in asked] == [
        ("other", None),
        ("mini-random", None),
    ], "each by its own honest view"
    again.screenshot("compare-models", full=True)


def test_a_mask_drawn_on_a_whole_picture_is_one_for_models_of_other_grids(
    new_page: OpenPage, two_models_url: str
) -> None:
    explore = new_page(url=two_models_url).open()
    explore.expected = ("status of 503",)
    explore.upload("wide.png", striped((640, 320)))
    wait_for_picture(explore, "wide.png")
    explore.one(".um-whole-row").click()
    explore.page.wait_for_function("window.unmask.grid.total !== 196", timeout=LOADING)
    explore.settle()
    explore.one(".um-grid").click(position={"x": 4, "y": 4})
    explore.settle()
    explore.one("button[role=tab]").nth(1).click()
    row = explore.one(".um-row-models")
    row.locator(".um-go").click()
    explore.page.wait_for_function(
        "document.querySelectorAll('.um-row-models .um-figure img').length === 4", timeout=LOADING
    )
    captions = row.locator("figcaption b").all_inner_texts()
    assert captions == ["What they see", "mini-random", "other", "The original"]


def test_a_new_mask_does_not_wait_for_the_uncertainty_of_the_old(explore: ExplorePage) -> None:
    explore.page.route("**/v1/reconstruct", lambda route: None, times=1)
    explore.choose("view", "uncertainty")
    explore.page.wait_for_function("window.sent.some((form) => form.flat().includes('ensemble'))")
    explore.click(3, 3)
    explore.page.wait_for_function(SETTLED, timeout=20_000)  # the old one is given up after 30 s
    assert explore.strategy == "draw"


@pytest.mark.parametrize("share", [75, 50])
def test_masks_that_are_always_the_same_are_not_called_certain(new_page: OpenPage, share: int) -> None:
    explore = new_page()
    explore.url += f"?strategy=grid&ratio=0.{share}&show=uncertainty"
    explore.open()
    assert "every grid mask is the same" in explore.one(".um-view-hint").inner_text()
    assert explore.one(".um-view input:checked").get_attribute("value") == "result"
    assert explore.one(".um-legend").is_hidden()
    assert not any("cover" in form for form in explore.sent())


@pytest.mark.parametrize("view", ["error", "uncertainty"])
def test_a_view_that_came_to_nothing_gives_way_to_the_result_until_it_comes(
    explore: ExplorePage, view: str
) -> None:
    explore.expected = ("Failed to load resource",)
    explore.page.route("**/v1/reconstruct", lambda route: route.fulfill(status=504, json={"status": 504}))
    explore.choose("view", view)
    explore.one(".um-again").wait_for()
    assert explore.one(".um-view input:checked").get_attribute("value") == "result"
    assert "could not be computed" in explore.one(".um-view-hint").inner_text()
    assert explore.one(".um-note").is_hidden()
    assert (explore.one(".um-result").get_attribute("aria-label") or "").startswith(
        "Reconstruction of Coffee"
    )
    explore.page.unroute("**/v1/reconstruct")
    explore.one(".um-again").click()
    explore.one(".um-legend").wait_for()
    assert explore.one(".um-view input:checked").get_attribute("value") == view
    assert explore.one(".um-view-hint").is_hidden()
    assert explore.sent()[-1]["panels"].endswith(view)
