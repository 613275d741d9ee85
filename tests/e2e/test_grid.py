"""The patch grid: pointer, touch, keys, history, and the live line to the server."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from tests.e2e.conftest import OpenPage
from tests.e2e.explore_page import ARTIFACTS, ExplorePage, indices

pytestmark = pytest.mark.e2e


# Counts the reconstructions under way, when each answer came and how long it took. After a second the page also asks
# how long the line is.
WATCH_FLIGHT = """() => {
  const ask = window.fetch, f = window.flight = {now: 0, most: 0, answers: []};
  window.fetch = async (...a) => {
    if (!String(a[0]).endsWith('v1/reconstruct')) return ask(...a);
    const start = performance.now();
    f.most = Math.max(f.most, ++f.now);
    try { return await ask(...a); } finally { f.now--; f.answers.push([start, performance.now()]); }
  };
}"""


def flipped(mask: str, *cells: tuple[int, int]) -> str:
    digits = list(mask)
    for row, column in cells:
        digits[row * 14 + column] = "10"[int(digits[row * 14 + column])]
    return "".join(digits)


def test_a_click_changes_one_patch_and_the_result_follows(explore: ExplorePage) -> None:
    before, picture = explore.mask, explore.canvas()
    explore.click(5, 6)
    explore.settle()
    assert explore.mask == flipped(before, (5, 6))
    assert explore.canvas() != picture
    assert explore.strategy == "draw"
    assert explore.one(".um-seed").input_value() == "7"


def test_a_fast_drag_leaves_no_gap(explore: ExplorePage) -> None:
    explore.press("show")
    explore.drag((2, 1), (2, 12), steps=2)
    explore.settle()
    assert explore.hidden == {2 * 14 + column for column in range(1, 13)}


def test_the_first_patch_decides_for_the_whole_stroke(explore: ExplorePage) -> None:
    explore.press("show")
    explore.drag((3, 3), (3, 6))
    explore.drag((3, 5), (3, 9))
    explore.settle()
    assert explore.hidden == {3 * 14 + 3, 3 * 14 + 4}, "a stroke that starts on a hidden patch shows"


def test_shift_drag_hides_a_rectangle(explore: ExplorePage) -> None:
    explore.press("show")
    explore.page.keyboard.down("Shift")
    explore.drag((2, 3), (6, 8), steps=9)
    explore.page.keyboard.up("Shift")
    explore.settle()
    assert explore.hidden == {row * 14 + column for row in range(2, 7) for column in range(3, 9)}


def test_undo_and_redo_walk_the_exact_masks(explore: ExplorePage) -> None:
    def act(name: str) -> None:
        if name == "click":
            explore.click(0, 0)
        elif name == "drag":
            explore.drag((4, 2), (9, 11))
        elif name == "block":
            explore.choose("strategy", "block")
        else:
            explore.press(name)

    masks = [explore.mask]
    for name in ("click", "drag", "invert", "block", "shuffle"):
        act(name)
        explore.settle()
        masks.append(explore.mask)
    assert all(a != b for a, b in pairwise(masks))
    for mask in reversed(masks[:-1]):
        explore.page.keyboard.press("Control+z")
        explore.settle()
        assert explore.mask == mask
    assert explore.strategy == "random"
    assert explore.one(".um-controls .um-undo").get_attribute("aria-disabled") == "true"
    for mask in masks[1:]:
        explore.page.keyboard.press("Control+y")
        explore.settle()
        assert explore.mask == mask
    assert explore.strategy == "block"


def test_a_hundred_steps_are_kept(explore: ExplorePage) -> None:
    explore.evaluate(
        """() => { const g = window.unmask.grid;
             for (let i = 0; i < 120; i++) { const m = g.hidden.slice(); m[i] = 1 - m[i]; g.edit(m); } }"""
    )
    steps = explore.evaluate("() => { let n = 0; while (window.unmask.grid.undo()) n++; return n; }")
    assert steps == 100
    explore.settle()


def test_everything_on_the_grid_works_by_keys(explore: ExplorePage) -> None:
    explore.press("show")
    explore.one(".um-grid").focus()
    keys = explore.page.keyboard
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Space"):
        keys.press(key)
    assert explore.hidden == {2 * 14 + 1}
    assert explore.one(".um-say").inner_text() == "1 of 196 patches hidden"
    keys.down("Shift")
    for _ in range(3):
        keys.press("ArrowRight")
    keys.up("Shift")
    explore.settle()
    assert explore.hidden == {2 * 14 + column for column in range(1, 5)}
    keys.press("End")
    assert explore.one(".um-say").inner_text() == "Row 3, column 14, visible"
    keys.press("Home")
    keys.press("Enter")
    explore.settle()
    assert 2 * 14 in explore.hidden
    keys.press("Control+z")
    keys.press("Control+z")
    explore.settle()
    assert explore.hidden == {2 * 14 + 1}, "painting with Shift was one step"
    assert explore.evaluate("document.activeElement.id") == "um-grid", "focus stayed"
    explore.screenshot("keyboard")
    keys.press("Tab")
    assert explore.evaluate("document.activeElement.id") != "um-grid", "Tab leaves the grid"


def test_a_mouse_that_moves_during_a_stroke_of_keys_paints_nothing(explore: ExplorePage) -> None:
    explore.press("show")
    explore.one(".um-grid").focus()
    keys, mouse = explore.page.keyboard, explore.page.mouse
    keys.press("Space")
    keys.down("Shift")
    keys.press("ArrowRight")
    for column in (0, 13):
        mouse.move(*explore.cell(7, column))
    keys.up("Shift")
    explore.settle()
    assert explore.hidden == {0, 1}


def test_a_finger_paints_on_the_grid_and_scrolls_beside_it(new_page: OpenPage) -> None:
    explore = new_page((390, 844), touch=True).open()
    explore.evaluate(
        "() => { const g = window.unmask.grid; g.edit(new Uint8Array(g.total)); scrollTo(0, 0); }"
    )
    session = explore.page.context.new_cdp_session(explore.page)

    def swipe(x: float, start: float, end: float) -> None:
        session.send(
            "Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": start}]}
        )
        for part in range(1, 9):
            y = start + (end - start) * part / 8
            session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y}]})
            explore.page.wait_for_timeout(16)
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        explore.page.wait_for_timeout(200)

    x, top = explore.cell(2, 6)
    _, bottom = explore.cell(11, 6)
    swipe(x, bottom, top)
    explore.settle()
    assert explore.evaluate("scrollY") == 0
    assert explore.hidden == {row * 14 + 6 for row in range(2, 12)}
    swipe(10, bottom, top)
    explore.page.wait_for_function("scrollY > 100")
    assert len(explore.hidden) == 10


def test_hidden_patches_are_opaque(explore: ExplorePage) -> None:
    explore.choose("strategy", "block")
    explore.page.wait_for_timeout(30)
    explore.settle()
    explore.evaluate("() => { document.activeElement.blur(); }")
    explore.page.mouse.move(5, 5)
    explore.steady()
    colours = explore.evaluate(
        """() => { const c = document.querySelector('.um-grid'), g = window.unmask.grid, w = c.width / 14;
             const seen = new Set(), x = c.getContext('2d');
             for (const i of g.indices) {
               const d = x.getImageData(i % 14 * w, Math.floor(i / 14) * w, w, w).data;
               for (let p = 0; p < d.length; p += 4) seen.add(d.slice(p, p + 4).join());
             }
             return [...seen].sort(); }"""
    )
    assert colours == ["107,114,128,255", "132,139,152,255"]


def test_a_long_drag_is_live_and_ends_with_the_right_picture(explore: ExplorePage) -> None:
    """One request at a time, several pictures a second, the last one for the last mask."""
    explore.press("show")
    explore.evaluate(WATCH_FLIGHT)
    mouse = explore.page.mouse
    mouse.move(*explore.cell(0, 0))
    mouse.down()
    for row in range(5):
        for column in range(14) if row % 2 == 0 else reversed(range(14)):
            mouse.move(*explore.cell(row, column))
            explore.page.wait_for_timeout(14)
    mouse.up()
    explore.settle()
    flight = explore.evaluate("window.flight")
    assert explore.hidden == set(range(70))
    assert flight["most"] == 1
    assert indices(explore.sent()[-1]) == explore.hidden
    answers = flight["answers"]
    span = answers[-1][1] - answers[0][0]
    waited = sum(end - start for start, end in answers)
    times = sorted(end - start for start, end in answers)
    figures = {
        "pictures_per_s": 1000 * len(answers) / span,
        "mean_answer_ms": waited / len(answers),
        "p50_answer_ms": times[len(times) // 2],
        "p95_answer_ms": times[int(0.95 * (len(times) - 1))],
    }
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / "drag.json").write_text(json.dumps(figures))
    assert len(answers) >= 3
    # Not a number of pictures: that is the machine's. The page's part is to ask again at once: for as long as it mostly
    # waits for an answer, or for the pointer to move where those come faster.
    pauses = sorted(begun - ended for (_, ended), (begun, _) in pairwise(answers))
    assert pauses[len(pauses) // 2] <= max(figures["p50_answer_ms"], 100)


def test_without_live_update_the_button_runs_it(explore: ExplorePage) -> None:
    explore.one(".um-live").click()
    explore.click(6, 6)
    explore.click(6, 7)
    explore.page.wait_for_timeout(200)
    assert explore.one(".um-badge").is_visible()
    assert len(explore.sent()) == 1
    explore.screenshot("not-up-to-date")
    explore.one(".um-run").click()
    explore.settle()
    assert not explore.one(".um-badge").is_visible()
    assert len(explore.sent()) == 2


def test_nothing_or_everything_hidden_asks_nobody(explore: ExplorePage) -> None:
    explore.press("show")
    assert "Nothing is hidden" in explore.one(".um-note").inner_text()
    explore.press("hide")
    assert "Everything is hidden" in explore.one(".um-note").inner_text()
    explore.page.wait_for_timeout(150)
    assert len(explore.sent()) == 1
    explore.click(7, 7)
    explore.settle()
    assert not explore.one(".um-note").is_visible()
    assert len(explore.hidden) == 195
