"""Views, strategies, ratio, seed, buttons, keys: every control does what it says."""

from __future__ import annotations

import io
import math

import pytest
from PIL import Image
from playwright.sync_api import Route

from model.masking import MAX_SEED
from tests.e2e.explore_page import ExplorePage, indices

pytestmark = pytest.mark.e2e


def set_range(explore: ExplorePage, selector: str, value: int) -> None:
    explore.one(selector).evaluate(
        """(node, value) => { node.value = value;
             for (const kind of ['input', 'change']) node.dispatchEvent(new Event(kind, {bubbles: true})); }""",
        value,
    )


def test_each_strategy_hides_its_own_share(explore: ExplorePage, subtests: pytest.Subtests) -> None:
    for strategy, count in (("block", 98), ("grid", 147), ("random", 147)):
        before = explore.mask
        explore.choose("strategy", strategy)
        explore.settle()
        with subtests.test(strategy=strategy):
            assert explore.mask != before
            assert len(explore.hidden) == count
            assert explore.one(".um-ratio-value").inner_text() == f"{count} of 196 · {round(count / 1.96)}%"
            assert explore.one(".um-strategy-hint").inner_text() != ""
            explore.screenshot(f"strategy-{strategy}")


def test_block_says_why_it_starts_at_half(explore: ExplorePage) -> None:
    explore.choose("strategy", "block")
    assert "50%" in explore.one(".um-strategy-hint").inner_text()


def test_the_ratio_hides_exactly_what_is_shown(explore: ExplorePage, subtests: pytest.Subtests) -> None:
    for ratio in (1, 5, 33, 90, 99):
        set_range(explore, "#um-ratio", ratio)
        explore.settle()
        with subtests.test(ratio=ratio):
            count = 196 - max(1, math.floor(196 * (100 - ratio) / 100))
            assert len(explore.hidden) == count
            assert explore.one(".um-count").inner_text() == f"{count} of 196 patches hidden"


def test_a_share_that_is_dragged_back_leaves_each_shuffle_a_step_of_its_own(explore: ExplorePage) -> None:
    slider = explore.one("#um-ratio")
    box = slider.bounding_box()
    assert box
    x, y = box["x"] + 8 + (box["width"] - 16) * 0.75, box["y"] + box["height"] / 2
    explore.page.mouse.move(x, y)
    explore.page.mouse.down()
    for away in (-40, -20, 0):
        explore.page.mouse.move(x + away, y)
    explore.page.mouse.up()
    explore.settle()
    explore.press("shuffle")
    explore.settle()
    first = explore.one(".um-seed").input_value()
    explore.press("shuffle")
    explore.settle()
    explore.press("undo")
    explore.settle()
    assert explore.one(".um-seed").input_value() == first


def test_the_same_seed_gives_the_same_mask(explore: ExplorePage) -> None:
    first = explore.mask
    seed = explore.one(".um-seed")
    seed.fill("41")
    seed.press("Enter")
    explore.settle()
    other = explore.mask
    assert other != first
    seed.fill("7")
    seed.press("Enter")
    explore.settle()
    assert explore.mask == first


def test_shuffle_draws_a_new_seed_and_leaves_drawing(explore: ExplorePage) -> None:
    explore.click(3, 3)
    before = explore.mask
    explore.press("shuffle")
    explore.settle()
    assert explore.strategy == "random"
    assert explore.mask != before
    assert explore.one(".um-seed").input_value() == explore.sent()[-1]["seed"]


def test_invert_turns_every_patch(explore: ExplorePage) -> None:
    before = explore.hidden
    explore.press("invert")
    explore.settle()
    assert explore.hidden == set(range(196)) - before
    assert indices(explore.sent()[-1]) == explore.hidden


def test_the_slider_view_lays_the_original_over_the_result(explore: ExplorePage) -> None:
    explore.choose("view", "slider")
    set_range(explore, ".um-split", 100)
    whole = explore.canvas()
    set_range(explore, ".um-split", 0)
    result = explore.canvas()
    explore.one(".um-split").focus()
    explore.page.keyboard.press("ArrowRight")
    assert explore.one(".um-split").get_attribute("aria-valuetext") == "1% original"
    set_range(explore, ".um-split", 50)
    assert len({whole, result, explore.canvas()}) == 3
    explore.screenshot("view-slider")
    explore.choose("view", "result")
    assert explore.canvas() == result
    box = explore.one(".um-hold").bounding_box()
    assert box is not None
    explore.page.mouse.move(box["x"] + 5, box["y"] + 5)
    explore.page.mouse.down()
    assert explore.canvas() == whole, "hold shows the original"
    assert explore.one("#um-right-title").inner_text() == "The original"
    explore.page.mouse.up()
    assert explore.canvas() == result


def test_the_error_view_has_a_legend_with_numbers(explore: ExplorePage) -> None:
    result = explore.canvas()
    explore.choose("view", "error")
    explore.page.wait_for_function("document.querySelector('.um-worst').textContent !== ''")
    assert explore.canvas() != result
    ticks = explore.one(".um-ticks span").all_inner_texts()
    assert ticks[0] == "0%"
    assert len(ticks) == 3
    assert "Largest error in row" in explore.one(".um-worst").inner_text()
    assert "error" in explore.sent()[-1]["panels"]
    switch = explore.one(".um-paste")
    assert switch.is_disabled()
    reason = explore.one(f"#{switch.get_attribute('aria-describedby')}")
    assert reason.is_visible()
    assert reason.inner_text().startswith("For pictures only")
    explore.screenshot("view-error")
    explore.choose("view", "slider")
    assert switch.is_enabled()
    assert reason.is_hidden()


def test_pasted_patches_are_the_originals(explore: ExplorePage) -> None:
    pasted = explore.canvas()
    explore.one(".um-paste").click()
    raw = explore.canvas()
    assert raw != pasted
    assert len(explore.sent()) == 1, "the switch asks nobody"
    explore.screenshot("raw-output")


def test_there_is_nothing_to_download_where_nothing_is_reconstructed(explore: ExplorePage) -> None:
    for mask in ("show", "hide"):
        explore.press(mask)
        assert explore.one(".um-download:disabled").count() == 2, mask
        explore.press("undo")
        explore.settle()
        assert explore.one(".um-download:enabled").count() == 2, mask


def test_download_gives_the_triptych(explore: ExplorePage) -> None:
    explore.drag((4, 4), (8, 8))
    explore.settle()
    with explore.page.expect_download() as waiting:
        explore.one(".um-download-sheet").click()
    download = waiting.value
    assert download.suggested_filename == f"unmask-coffee-{len(explore.hidden)}-of-196.png"
    picture = Image.open(io.BytesIO(download.path().read_bytes()))
    assert picture.format == "PNG"
    assert picture.width >= 3 * 224
    assert picture.height >= 224
    assert explore.sent()[-1]["panels"] == "masked,pasted,original"


def test_what_is_said_over_the_controls_goes_by_itself(explore: ExplorePage) -> None:
    explore.resize(1280, 720)
    explore.evaluate(
        "() => { const later = setTimeout;"
        " window.setTimeout = (run, ms, ...all) => later(run, ms >= 5000 ? 500 : ms, ...all); }"
    )
    with explore.page.expect_download():
        explore.one(".um-download-sheet").click()
    explore.page.wait_for_function(
        "document.querySelector('.um-status-text').textContent.startsWith('Saved as')"
    )
    assert explore.one(".um-status.um-away").is_visible()
    explore.page.wait_for_function("document.querySelector('.um-status-text').textContent === ''")


def test_download_gives_what_is_shown(explore: ExplorePage, subtests: pytest.Subtests) -> None:
    for view in ("reconstruction", "error", "uncertainty"):
        if view == "reconstruction":
            explore.one(".um-paste").click()
        else:
            explore.choose("view", view)
            explore.one(".um-legend").wait_for()
        for button in ("sheet", "photo"):
            with explore.page.expect_download():
                explore.one(f".um-download-{button}").click()
        with subtests.test(view=view):
            sheet, photo = explore.sent()[-2:]
            assert sheet["panels"] == f"masked,{view},original"
            assert (photo["panel"], photo["full_size"]) == (view, "true")
            assert ("cover" in sheet, "cover" in photo) == (view == "uncertainty",) * 2


def test_the_uncertainty_comes_without_the_update_while_drawing(explore: ExplorePage) -> None:
    explore.one(".um-live").click()
    explore.choose("view", "uncertainty")
    explore.one(".um-legend").wait_for()
    assert explore.one(".um-note").is_hidden()
    asked = len(explore.sent())
    explore.click(2, 2)
    explore.one(".um-badge").wait_for()
    assert len(explore.sent()) == asked, "what is drawn waits for the button"


def test_the_model_that_was_chosen_stays_chosen_while_it_is_loaded(explore: ExplorePage) -> None:
    held: list[Route] = []
    explore.page.route("**/v1/models/mini-block", lambda route: held.append(route))
    chosen = explore.one(".um-models select")
    chosen.wait_for()
    explore.evaluate(
        "window.unmask.store.set({models: window.unmask.store.state.models.map(({views, ...one}) => one)})"
    )
    with explore.page.expect_request("**/v1/models/mini-block"):
        chosen.select_option("mini-block")
    explore.click(2, 2)
    explore.settle()
    explore.steady()
    assert chosen.input_value() == "mini-block"
    held[0].continue_()
    explore.page.wait_for_function("window.unmask.store.state.result.answer.model === 'mini-block'")
    assert chosen.input_value() == "mini-block"


def test_single_letters_work_and_can_be_switched_off(explore: ExplorePage) -> None:
    keys, before = explore.page.keyboard, explore.mask
    keys.press("i")
    explore.settle()
    assert explore.hidden == {i for i, digit in enumerate(before) if digit == "0"}
    keys.press("s")
    explore.settle()
    assert explore.strategy == "random"
    keys.press("]")
    explore.settle()
    assert explore.one("#um-ratio").input_value() == "80"
    keys.press("[")
    explore.settle()
    assert explore.one("#um-ratio").input_value() == "75"
    result = explore.canvas()
    keys.down("o")
    assert explore.canvas() != result
    keys.up("o")
    assert explore.canvas() == result
    keys.press("a")
    assert explore.hidden == set()
    keys.press("Control+z")
    explore.settle()
    keys.press("?")
    assert explore.one(".um-keys").is_visible()
    explore.screenshot("keys")
    explore.one(".um-letters").click()
    keys.press("Escape")
    assert not explore.one(".um-keys").is_visible()
    still = explore.mask
    keys.press("i")
    explore.page.wait_for_timeout(100)
    assert explore.mask == still


def test_letters_in_a_text_field_are_text(explore: ExplorePage) -> None:
    before = explore.mask
    explore.one(".um-ranges summary").click()
    explore.one(".um-ranges-text").press_sequentially("sia")
    assert explore.mask == before


def test_rows_and_columns_are_a_way_without_the_grid(explore: ExplorePage) -> None:
    explore.press("show")
    explore.one(".um-ranges summary").click()
    text = explore.one(".um-ranges-text")
    text.fill("r3-5 c2-4, R14, c1")
    text.press("Enter")
    explore.settle()
    rectangle = {row * 14 + column for row in range(2, 5) for column in range(1, 4)}
    assert explore.hidden == rectangle | {13 * 14 + column for column in range(14)} | {
        row * 14 for row in range(14)
    }
    before = explore.mask
    for wrong in ("r3-15", "x4", "", "r5-2", "<img src=x onerror=alert(1)>"):
        text.fill(wrong)
        text.press("Enter")
        assert explore.status.startswith("This is not understood")
        assert text.get_attribute("aria-invalid") == "true"
        assert explore.mask == before


def test_focus_stays_on_the_pressed_control(explore: ExplorePage) -> None:
    explore.one(".um-controls .um-shuffle").focus()
    explore.page.keyboard.press("Enter")
    explore.settle()
    assert explore.evaluate("document.activeElement.classList.contains('um-shuffle')")


def test_a_seed_that_is_none_stays_as_typed_with_the_limits(explore: ExplorePage) -> None:
    field = explore.one(".um-seed")
    field.fill("-4")
    field.blur()
    explore.click(2, 2)
    explore.settle()
    assert (field.input_value(), field.get_attribute("aria-invalid")) == ("-4", "true")
    field.fill("-5")
    field.blur()
    assert field.get_attribute("max") == str(MAX_SEED)
    assert explore.status == f"A seed is a whole number from 0 to {MAX_SEED}."
    explore.press("shuffle")
    explore.settle()
    assert (field.get_attribute("aria-invalid"), field.input_value()[:1] != "-") == ("false", True)


def test_the_original_is_let_go_of_when_the_window_is_left(explore: ExplorePage) -> None:
    explore.page.keyboard.down("o")
    assert explore.one("#um-right-title").inner_text() == "The original"
    explore.evaluate("() => { window.dispatchEvent(new Event('blur')); }")
    assert explore.one("#um-right-title").inner_text() == "What the model fills in"
    explore.page.keyboard.up("o")
