"""Examples and own pictures: chosen, dropped, pasted, turned, broken, maliciously named."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from playwright.sync_api import Route

from tests.e2e.conftest import OpenPage
from tests.e2e.explore_page import ExplorePage

pytestmark = pytest.mark.e2e

HOSTILE = "${document.title='owned'}{{constructor}}<img src=x onerror=document.title='owned'>.png"

# Hands a file to the page the way the clipboard or a drop does.
HAND_OVER = """([kind, bytes]) => {
  const paste = kind === 'paste', data = new DataTransfer();
  const name = paste ? 'image.png' : 'dropped.png', type = paste ? 'clipboardData' : 'dataTransfer';
  data.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/png'}));
  const made = {[type]: data, bubbles: true, cancelable: true};
  document.dispatchEvent(paste ? new ClipboardEvent('paste', made) : new DragEvent('drop', made));
}"""

CORNERS = """() => {
  const canvas = document.createElement('canvas'), x = canvas.getContext('2d');
  canvas.width = canvas.height = 224;
  x.drawImage(window.unmask.state.picture.image, 0, 0);
  return [[20, 20], [204, 20], [20, 204], [204, 204]].map(([a, b]) => [...x.getImageData(a, b, 1, 1).data.slice(0, 3)]);
}"""

# Its first bytes, as a telephone writes them, and no picture.
HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heicMiHE" + bytes(64)

# The next picture that the browser decodes takes as long as a large one from a phone.
SLOW_ONCE = """() => {
  const decode = window.createImageBitmap;
  window.createImageBitmap = async (...all) => {
    window.createImageBitmap = decode;
    await new Promise((resolve) => setTimeout(resolve, 2500));
    window.late = true;
    return decode(...all);
  };
}"""

# As choosing a model does, of which this service has one.
ANOTHER_MODEL = (
    "document.dispatchEvent(new CustomEvent('unmask:model', { detail: unmask.store.state.model }))"
)


def quarters(turn: int = 1, kind: str = "PNG") -> bytes:
    """Red, green above blue, white; with an orientation mark that a viewer has to follow."""
    picture = Image.new("RGB", (400, 400))
    for box, colour in (((0, 0), "red"), ((200, 0), "lime"), ((0, 200), "blue"), ((200, 200), "white")):
        picture.paste(Image.new("RGB", (200, 200), colour), box)
    exif = picture.getexif()
    exif[0x0112] = turn
    file = io.BytesIO()
    picture.save(file, kind, exif=exif)
    return file.getvalue()


def large_quarters() -> bytes:
    """The same, of 41 million pixels."""
    file = io.BytesIO()
    picture = Image.open(io.BytesIO(quarters())).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    picture.resize((6400, 6400), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def colour_names(corners: list[list[int]]) -> list[str]:
    names = {(1, 0, 0): "red", (0, 1, 0): "lime", (0, 0, 1): "blue", (1, 1, 1): "white"}
    return [names.get((r > 128, g > 128, b > 128), "?") for r, g, b in corners]


def wait_for_picture(explore: ExplorePage, title: str) -> None:
    explore.page.wait_for_function("(title) => window.unmask.state.picture.title === title", arg=title)
    explore.settle()


def test_every_example_can_be_chosen_and_the_mask_stays(explore: ExplorePage) -> None:
    explore.click(2, 2)
    explore.settle()
    mask, seen = explore.mask, {explore.canvas()}
    samples = explore.one(".um-sample")
    assert samples.count() >= 6
    for i in range(1, samples.count()):
        samples.nth(i).click()
        wait_for_picture(explore, samples.nth(i).locator("img").get_attribute("alt") or "")
        assert samples.nth(i).get_attribute("aria-pressed") == "true"
        assert explore.mask == mask
        seen.add(explore.canvas())
        explore.screenshot(f"sample-{i}")
    assert len(seen) == samples.count()
    assert explore.one(".um-sample[aria-pressed=true]").count() == 1


def test_an_own_picture_is_shown_and_its_crop_is_sent_from_then_on(explore: ExplorePage) -> None:
    mask = explore.mask
    explore.upload("quarters.png", quarters())
    wait_for_picture(explore, "quarters.png")
    assert colour_names(explore.evaluate(CORNERS)) == ["red", "lime", "blue", "white"]
    assert explore.mask == mask
    explore.click(0, 0)
    explore.settle()
    assert "original" not in explore.sent()[-1]["panels"]
    assert explore.one(".um-result").get_attribute("aria-label", timeout=1000) is not None
    explore.screenshot("own-picture")


def test_a_photo_held_sideways_is_turned_upright(explore: ExplorePage) -> None:
    explore.upload("phone.jpg", quarters(turn=6, kind="JPEG"), "image/jpeg")
    wait_for_picture(explore, "phone.jpg")
    assert colour_names(explore.evaluate(CORNERS)) == ["blue", "red", "white", "lime"]


def test_what_is_transparent_is_white_as_the_model_sees_it(explore: ExplorePage) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (300, 300), (255, 0, 0, 0)).save(file, "PNG")
    explore.upload("clear.png", file.getvalue())
    wait_for_picture(explore, "clear.png")
    explore.press("show")
    middle = "(c) => [...c.getContext('2d').getImageData(c.width / 28, c.height / 28, 1, 1).data]"
    explore.steady()
    assert explore.one(".um-grid").evaluate(middle) == [255, 255, 255, 255]


def test_a_refused_file_leaves_the_square_where_it_was_moved(explore: ExplorePage) -> None:
    explore.expected = ("Failed to load resource",)
    file = io.BytesIO()
    Image.linear_gradient("L").resize((800, 200)).save(file, "PNG")
    explore.upload("wide.png", file.getvalue())
    wait_for_picture(explore, "wide.png")
    explore.one(".um-move-range").press("Home")
    crop = "window.unmask.store.state.fields.crop"
    explore.page.wait_for_function(f"{crop} === '0,0,200'")
    explore.settle()
    explore.upload("broken.png", b"no picture")
    explore.one(".um-status.um-error").wait_for()
    explore.press("shuffle")
    explore.settle()
    assert explore.evaluate(crop) == "0,0,200"


def file_of(explore: ExplorePage, kind: str) -> tuple[str, Image.Image]:
    """What the button for the photo at its own size gives: the name and the picture."""
    with explore.page.expect_download() as waiting:
        explore.one(".um-download-photo").click()
    name, picture = waiting.value.suggested_filename, Image.open(waiting.value.path())
    explore.page.wait_for_function("document.querySelector('.um-download-photo').ariaBusy === 'false'")
    assert picture.format == kind
    return name, picture


def test_the_photo_is_given_at_its_own_size_with_the_hidden_patches_painted_in(explore: ExplorePage) -> None:
    file = io.BytesIO()
    photo = Image.effect_noise((840, 280), 60).convert("RGB")
    photo.save(file, "PNG")
    explore.upload("wide.png", file.getvalue())
    wait_for_picture(explore, "wide.png")
    explore.one(".um-move-range").press("End")
    explore.page.wait_for_function("window.unmask.store.state.fields.crop === '560,0,280'")
    explore.click(2, 3)
    explore.settle()
    name, painted = file_of(explore, "PNG")
    assert name == f"unmask-wide-{len(explore.hidden)}-of-196-full-size.png"
    assert explore.status == f"Saved as {name}"
    assert painted.size == photo.size
    changed = {
        i
        for i in range(3 * 196)
        for box in [(i % 42 * 20, i // 42 * 20, i % 42 * 20 + 20, i // 42 * 20 + 20)]
        if painted.crop(box).tobytes() != photo.crop(box).tobytes()
    }
    assert changed == {i // 14 * 42 + 28 + i % 14 for i in explore.hidden}, (
        "what was visible keeps its pixels"
    )


def test_a_photo_that_is_too_large_as_png_comes_as_jpeg_and_else_is_told(explore: ExplorePage) -> None:
    explore.expected = ("Failed to load resource",)
    explore.upload("own.png", quarters())
    wait_for_picture(explore, "own.png")
    accepted: list[str] = []
    fits = {"image/jpeg"}

    def too_large(route: Route) -> None:
        accepted.append(route.request.headers["accept"])
        if accepted[-1] in fits:
            route.continue_()
        elif len(accepted) == 1:
            route.fulfill(status=503, headers={"Retry-After": "2"}, json={"type": "busy", "status": 503})
        else:
            route.fulfill(status=413, json={"type": "urn:unmask:problem:answer-too-large", "status": 413})

    explore.page.route("**/v1/reconstruct", too_large)
    explore.one(".um-download-photo").focus()
    with explore.page.expect_download() as waiting:
        explore.page.keyboard.press("Enter")
        explore.page.wait_for_function(
            "document.querySelector('.um-status-text').textContent.includes('Trying again')"
        )
        explore.page.keyboard.press("Enter")  # one that is busy takes no second press
    assert waiting.value.suggested_filename.endswith("-full-size.jpg")
    assert accepted == ["image/png", "image/png", "image/jpeg"]
    explore.page.wait_for_function(
        "document.querySelector('.um-status-text').textContent.endsWith('as PNG it is larger than the server sends.')"
    )
    assert explore.one(".um-download-photo").evaluate("(node) => node === document.activeElement")
    fits.clear()
    explore.page.keyboard.press("Enter")
    explore.one(".um-status.um-error").wait_for()
    assert explore.status.endswith("larger than the server sends. Choose a smaller photo.")


def test_a_photo_over_the_limit_is_made_smaller(explore: ExplorePage) -> None:
    explore.expected = ("Failed to load resource",)
    explore.upload("phone.png", large_quarters())
    wait_for_picture(explore, "phone.png")
    assert colour_names(explore.evaluate(CORNERS)) == ["red", "lime", "blue", "white"]
    assert "smaller before it was sent" in explore.status
    assert "smaller before it was sent" in explore.one(".um-pictures > .um-hint").inner_text()
    assert explore.evaluate("window.unmask.state.placement.original_width") == 4096


def test_a_format_that_only_the_browser_reads_is_sent_as_jpeg(explore: ExplorePage) -> None:
    """As Safari sends HEIC, which no browser here opens."""
    explore.expected = ("Failed to load resource",)
    file = io.BytesIO()
    Image.open(io.BytesIO(quarters())).save(file, "ICO", sizes=[(256, 256)])
    explore.upload("icon.ico", file.getvalue(), "image/x-icon")
    wait_for_picture(explore, "icon.ico")
    assert colour_names(explore.evaluate(CORNERS)) == ["red", "lime", "blue", "white"]
    assert "sent it as JPEG" in explore.status


def test_an_iphones_photo_that_the_browser_cannot_open_is_told_a_way(explore: ExplorePage) -> None:
    explore.expected = ("Failed to load resource",)
    explore.upload("IMG_0001.HEIC", HEIC, "")
    explore.one(".um-status.um-error").wait_for()
    assert explore.status.startswith("This is an iPhone photo (HEIC)")
    assert "JPEG" in explore.status
    explore.one(".um-language").click()
    assert "另存为 JPEG" in explore.status


# Half a minute takes a second and a half.
HURRY = """() => {
  const later = window.setTimeout;
  window.setTimeout = (run, ms, ...all) => later(run, ms >= 30000 ? ms / 20 : ms, ...all);
}"""


def test_a_photo_may_take_longer_than_half_a_minute_to_arrive(explore: ExplorePage) -> None:
    held: list[Route] = []
    explore.evaluate(HURRY)
    explore.page.route("**/v1/reconstruct", lambda route: held.append(route), times=1)
    explore.upload("slow.png", quarters())
    explore.page.wait_for_timeout(2500)
    held[0].continue_()
    wait_for_picture(explore, "slow.png")
    assert explore.status == ""


def test_a_picture_under_way_is_not_lost_to_another_model(explore: ExplorePage) -> None:
    held: list[Route] = []
    explore.page.route("**/v1/reconstruct", lambda route: held.append(route), times=1)
    explore.upload("own.png", quarters())
    explore.page.wait_for_timeout(500)
    assert held
    explore.evaluate(ANOTHER_MODEL)
    wait_for_picture(explore, "own.png")
    assert explore.status == ""


def test_a_photo_that_is_being_made_smaller_is_not_lost_to_another_model(explore: ExplorePage) -> None:
    explore.expected = ("Failed to load resource",)
    explore.evaluate(SLOW_ONCE)
    with explore.page.expect_response(lambda response: response.status == 413):
        explore.upload("phone.png", large_quarters())
    explore.page.wait_for_function("() => window.unmask.client.idle")
    explore.evaluate(ANOTHER_MODEL)
    wait_for_picture(explore, "phone.png")
    assert "smaller before it was sent" in explore.status


def test_one_that_the_browser_cannot_make_smaller_is_told_the_limit_and_a_way(explore: ExplorePage) -> None:
    explore.expected = ("Failed to load resource",)
    file = io.BytesIO()
    Image.new("1", (8000, 6000)).save(file, "TIFF", compression="group4")
    explore.upload("scan.tif", file.getvalue())
    explore.one(".um-status.um-error").wait_for()
    assert "at most 40 million" in explore.status
    assert "screenshot" in explore.status


@pytest.mark.parametrize("touched", [".um-sample >> nth=1", ".um-try-block"])
def test_on_a_phone_what_was_asked_for_comes_into_sight(new_page: OpenPage, touched: str) -> None:
    explore = new_page((390, 844), touch=True).open()
    explore.page.emulate_media(reduced_motion="reduce")
    explore.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    assert explore.evaluate("document.querySelector('.um-result').getBoundingClientRect().bottom") < 0
    explore.one(touched).tap()
    explore.settle()
    box = explore.one(".um-result").bounding_box()
    assert box is not None
    assert 0 < box["y"] < 500


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_picture_can_be_pasted_and_dropped(explore: ExplorePage, kind: str) -> None:
    explore.evaluate(HAND_OVER, [kind, list(quarters())])
    wait_for_picture(explore, "image.png" if kind == "paste" else "dropped.png")
    assert colour_names(explore.evaluate(CORNERS))[0] == "red"


@pytest.mark.parametrize(
    "content", [b"this is no picture", quarters()[:300], b""], ids=["text", "cut", "empty"]
)
def test_a_broken_file_is_told_and_nothing_is_lost(explore: ExplorePage, content: bytes) -> None:
    explore.click(4, 4)
    explore.settle()
    explore.expected = ("Failed to load resource",)
    mask, picture = explore.mask, explore.canvas()
    explore.upload("broken.png", content)
    explore.one(".um-status.um-error").wait_for()
    assert explore.status == "This file is not a picture we can read. Use JPEG, PNG or WebP."
    assert (explore.mask, explore.canvas()) == (mask, picture)
    explore.screenshot("broken-file")
    explore.click(5, 5)
    explore.settle()
    assert explore.status == ""


def test_a_hostile_file_name_does_nothing(explore: ExplorePage) -> None:
    explore.upload(HOSTILE, quarters())
    wait_for_picture(explore, HOSTILE)
    explore.choose("view", "error")
    explore.page.wait_for_timeout(300)
    assert explore.page.title() == "Unmask"
    assert HOSTILE in (explore.one(".um-result").get_attribute("aria-label") or "")
    assert explore.one(".um img[src=x]").count() == 0
    with explore.page.expect_download() as waiting:
        explore.one(".um-download-sheet").click()
    assert set(waiting.value.suggested_filename) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")


def test_a_large_picture_that_is_ready_late_does_not_replace_the_next(explore: ExplorePage) -> None:
    explore.evaluate(SLOW_ONCE)
    explore.upload("first.png", quarters())
    explore.page.wait_for_function("() => window.unmask.client.idle")  # answered, and still being decoded
    explore.upload("second.png", quarters(turn=3))
    wait_for_picture(explore, "second.png")
    explore.page.wait_for_function("() => window.late")
    explore.page.wait_for_timeout(300)
    explore.settle()
    assert explore.evaluate("window.unmask.state.picture.title") == "second.png"
    assert colour_names(explore.evaluate(CORNERS)) == ["white", "blue", "lime", "red"]


def test_an_example_that_arrives_late_does_not_replace_the_own_picture(explore: ExplorePage) -> None:
    held: list[Route] = []
    explore.page.route("**/v1/samples/*", lambda route: held.append(route))
    with explore.page.expect_request("**/v1/samples/*"):
        explore.one(".um-sample").nth(2).click()
    while not held:
        explore.page.wait_for_timeout(20)
    explore.upload("own.png", quarters())
    wait_for_picture(explore, "own.png")
    with explore.page.expect_response("**/v1/samples/*"):
        held[0].continue_()
    explore.page.wait_for_timeout(500)
    explore.settle()
    assert explore.evaluate("window.unmask.state.picture.title") == "own.png"


def test_a_picture_of_the_page_that_is_dragged_is_no_upload(explore: ExplorePage) -> None:
    assert explore.evaluate(
        "[...document.querySelectorAll('.um-sample img')].every((image) => !image.draggable)"
    )
    title = explore.evaluate("window.unmask.state.picture.title")
    explore.evaluate(
        "() => document.querySelector('.um-grid').dispatchEvent(new DragEvent('dragstart', { bubbles: true }))"
    )
    explore.evaluate(HAND_OVER, ["drop", list(quarters())])
    assert explore.evaluate("window.unmask.state.picture.title") == title
    explore.evaluate("() => document.dispatchEvent(new DragEvent('dragend'))")
    explore.evaluate(HAND_OVER, ["drop", list(quarters())])
    wait_for_picture(explore, "dropped.png")


def test_the_mask_of_a_link_survives_a_touch_before_the_first_picture(new_page: OpenPage) -> None:
    explore = new_page()
    held: list[Route] = []
    explore.page.route("**/v1/samples/coffee", lambda route: held.append(route))
    explore.page.goto(explore.url, wait_until="commit")
    explore.one(".um-grid").wait_for()
    explore.page.wait_for_function("window.unmask && window.unmask.grid")
    explore.one(".um-grid").click(position={"x": 40, "y": 40})
    explore.one(".um-grid").press(" ")
    explore.one(".um-invert").click()
    for route in held:
        route.continue_()
    explore.settle()
    assert explore.strategy == "random"
    assert explore.mask.count("1") == 147
