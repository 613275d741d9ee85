"""The How it works tab: the visitor's own request opened up, true sizes, and how the model learned."""

from __future__ import annotations

import io
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser
from torch.utils.flop_counter import FlopCounterMode

from model.checkpoints import store
from model.config import SIZES, MAEConfig
from model.loading import prove
from model.network import MAE
from tests.conftest import started_server
from tests.e2e.conftest import OpenPage
from tests.e2e.explore_page import ExplorePage
from tests.e2e.tabs import axe_findings, foreign, open_tab
from tests.e2e.test_pictures import wait_for_picture

pytestmark = pytest.mark.e2e

COST = Path(__file__).resolve().parents[2] / "ui" / "assets" / "learn-cost.js"


def halves() -> bytes:
    """A picture three times as wide as high: red, and its right half blue."""
    picture = Image.new("RGB", (900, 300), "red")
    picture.paste(Image.new("RGB", (450, 300), "blue"), (450, 0))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def costs(browser: Browser, config: MAEConfig, visible: int) -> dict[str, Any]:
    """What the page's own formula says."""
    page = browser.new_page()
    script = f"([model, n, v]) => {{ {COST.read_text(encoding='utf-8')} return stageCosts(model, n, v); }}"
    found: dict[str, Any] = page.evaluate(script, [config.to_dict(), config.patches, visible])
    page.close()
    return found


SHAPES = SIZES | {
    "ablation": replace(SIZES["debug"], mask_tokens="encoder"),
    "statistics": replace(SIZES["debug"], target="norm_pixel_stats"),
}


@pytest.mark.parametrize("name", ["debug", "small", "vit_base", "ablation", "statistics"])
def test_the_shares_of_work_are_what_torch_counts(browser: Browser, name: str) -> None:
    config = SHAPES[name]
    visible = config.patches // 4
    network = MAE(config).to("meta")  # counted, never computed
    with torch.device("meta"):
        image = torch.empty(1, 3, config.image_size, config.image_size)
        keep = torch.empty(1, visible, dtype=torch.int64)
        restore = torch.empty(1, config.patches, dtype=torch.int64)
        with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            counted = []
            inside = restore if config.mask_tokens == "encoder" else None
            for run in (lambda: network.encode(image, keep, inside), lambda: network(image, keep, restore)):
                with FlopCounterMode(display=False) as counter:
                    run()
                counted.append(counter.get_total_flops() / 2)  # it counts a multiply-add as two
    stages = costs(browser, config, visible)["stages"]
    encoder = stages["tokens"]["work"] + stages["encoder"]["work"]
    assert encoder == pytest.approx(counted[0], rel=1e-3)
    assert sum(stage["work"] for stage in stages.values()) == pytest.approx(counted[1], rel=1e-3)
    learned = sum(parameter.numel() for parameter in network.parameters())
    assert sum(stage["learned"] for stage in stages.values()) == learned


def test_the_paper_figures_follow_from_the_formula(browser: Browser) -> None:
    """ViT-L: the decoder takes a quarter, and mask tokens in the encoder would cost 3.2 times as much."""
    found = costs(browser, SIZES["vit_large"], 49)
    assert found["stages"]["decoder"]["share"] == pytest.approx(0.254, abs=0.002)
    assert found["everywhere"] / found["work"] == pytest.approx(
        3.22, abs=0.03
    )  # we project visible patches only


@pytest.fixture(scope="module")
def learn(shared_page: OpenPage) -> ExplorePage:
    """The tab of the default request; its tests choose steps and nothing else."""
    return open_tab(shared_page(), "learn")


def test_the_steps_tell_the_sizes_of_this_request(learn: ExplorePage) -> None:
    titles = learn.one(".um-step-title").all_inner_texts()
    assert titles == [
        "1 Cut into patches", "2 Hide 75%", "3 Tokens", "4 Encoder", "5 Put mask tokens back", "6 Decoder",
        "7 Back to pixels",
    ]  # fmt: skip
    facts = " ".join(learn.one(".um-step-fact").all_inner_texts())
    for part in ("196 squares of 16 × 16", "147 are dropped, 49 stay", "768 numbers", "147 copies"):
        assert part in facts
    shares = learn.one(".um-step-share").all_inner_texts()
    assert len(shares) == 7
    assert learn.one(".um-step-detail h2").inner_text() == "Encoder"
    learn.one(".um-step[data-step=mask_tokens]").click()
    detail = learn.one(".um-step-detail").inner_text()
    assert "[B, K+1, D] = 1 × 50 × 192" in detail
    assert "[B, L+1, d] = 1 × 197 × 128" in detail
    learn.screenshot("learn-1440-light", full=True)


def test_the_steps_work_by_keyboard(learn: ExplorePage) -> None:
    learn.one(".um-step").first.focus()
    learn.page.keyboard.press("Enter")
    assert learn.one(".um-step-detail h2").inner_text() == "Cut into patches"
    learn.page.keyboard.press("Tab")
    learn.page.keyboard.press("Space")
    assert learn.one(".um-step-detail h2").inner_text() == "Hide 75%"
    assert learn.evaluate("document.activeElement.dataset.step") == "visible"
    assert learn.one(".um-step[aria-pressed=true]").count() == 1


def test_the_tab_follows_what_is_done_on_explore(new_page: OpenPage) -> None:
    page = new_page()
    page.url += "?pic=cat&strategy=block&ratio=0.5&seed=3"
    learn = open_tab(page, "learn")
    assert learn.one(".um-step-title").all_inner_texts()[1] == "2 Hide 50%"
    sent = learn.sent()[-2]
    assert {key: sent[key] for key in ("strategy", "ratio", "seed")} == {
        "strategy": "block",
        "ratio": "0.50",
        "seed": "3",
    }


def test_a_moved_square_is_the_one_that_is_explained(explore: ExplorePage) -> None:
    explore.upload("wide.png", halves())
    wait_for_picture(explore, "wide.png")
    middle = explore.evaluate("window.unmask.state.placement.left")
    explore.one(".um-move-range").press("End")
    explore.page.wait_for_function("(middle) => window.unmask.state.placement.left > middle", arg=middle)
    explore.settle()
    explore.one("button[role=tab]").nth(2).click()
    explore.one(".um-loss-raw-fact b").first.wait_for(timeout=60_000)
    assert "crop" not in explore.sent()[-1], "what is sent is the crop already"
    centre = "(canvas) => [...canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data]"
    red, _, blue, _ = explore.one(".um-loss-raw").evaluate(centre)
    assert blue > red, "the right half of the picture"


def test_visible_patches_are_seen_to_come_out_worse(learn: ExplorePage) -> None:
    hidden, visible = learn.one(".um-loss-raw-fact b").all_inner_texts()
    assert 1 < float(hidden.rstrip("%")) < 40
    assert 1 < float(visible.rstrip("%")) < 60
    assert learn.canvas(".um-loss-raw") != learn.canvas(".um-loss-pasted")


def test_both_questions_are_answered_with_pictures(learn: ExplorePage) -> None:
    learn.one(".um-positions-hidden-fact:not(:empty)").wait_for()
    assert "hidden_only" in [fields.get("positions") for fields in learn.sent()]
    assert learn.canvas(".um-positions-both") == learn.canvas(".um-loss-raw")
    assert learn.canvas(".um-positions-hidden") != learn.canvas(".um-positions-both")
    assert learn.one(".um-normalised-tiles canvas").count() == 4
    assert "This model predicts each patch without" in learn.one(".um-normalised-answer").inner_text()


def test_the_shipped_model_shows_its_own_curve(learn: ExplorePage) -> None:
    learn.one(".um-curve-canvas").wait_for()
    lead = learn.one(".um-training-lead").inner_text()
    assert lead.startswith("22,700 steps, 1,152,000 crops of photos seen.")
    assert "0.36 at step 16,300" in lead, "the loss of another target is not a worse one"
    alt = learn.one(".um-curve-canvas").get_attribute("aria-label") or ""
    assert re.fullmatch(r"Loss [\d.]+ at first, [\d.]+ after [\d,]+ steps", alt)
    assert learn.one(".um-key-val").is_hidden(), "nothing was held out of its training"


def test_a_record_that_could_not_be_fetched_is_not_taken_for_none(new_page: OpenPage) -> None:
    page = new_page()
    page.expected = ("Failed to load resource", "ERR_")
    page.page.route("**/v1/info", lambda route: route.abort())
    learn = open_tab(page, "learn")
    learn.one(".um-training-again").wait_for()
    page.page.unroute("**/v1/info")
    assert learn.one(".um-training-lead").inner_text() == "No answer from the server about the training."
    learn.one(".um-training-again button").click()
    learn.one(".um-curve-canvas").wait_for()
    assert learn.one(".um-training-again").is_hidden()


def test_a_lost_server_is_told_while_it_is_waited_for(explore: ExplorePage) -> None:
    explore.expected = ("Failed to load resource", "ERR_")
    explore.page.route("**/v1/reconstruct", lambda route: route.abort(), times=1)
    explore.one("button[role=tab]").nth(2).click()
    said = "document.querySelector('.um-learn-say').textContent"
    explore.page.wait_for_function(f"{said}.startsWith('No answer from the server')")
    assert explore.one(".um-steps").is_hidden(), "seven buttons without a word on them"
    explore.page.wait_for_function(f"{said} === ''", timeout=60_000)
    assert explore.one(".um-step").count() == 7


def test_nothing_english_is_left_on_the_chinese_tab(new_page: OpenPage) -> None:
    learn = open_tab(new_page((390, 900), "dark"), "learn", "zh")
    letters = {"B", "L", "K", "P", "D", "d"}
    assert foreign(learn, "#unmask-learn") <= letters | {"python", "m", "model", "pretrain", "small"}


# Of each canvas the one shade that fills what was painted, large, and what was masked and was there, beneath; else all.
SHADES = """(canvases) => canvases.map((canvas) => {
  const { width: w, height: h } = canvas, paint = canvas.getContext('2d'), half = w / 2 - 4, low = h - half;
  return [[0, 0, w, w], [0, low, half, half], [w - half, low, half, half]].map((part) => {
    const { data } = paint.getImageData(...part), found = new Set(data.filter((_, i) => i % 4 === 0));
    return found.size === 1 ? [...found][0] : [...found].join();
  });
})"""


@pytest.fixture(scope="module")
def run_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that watches a run of three photos and three pictures so far, and has a model of normalised pixels.

    The run's pictures are smaller than the shipped models'; in them what was masked is black, what was there white.
    """
    run = tmp_path_factory.mktemp("runs") / "going-on"
    (run / "pictures").mkdir(parents=True)
    points = [{"step": s, "samples": 32 * s, "loss": 2 - s / 100, "lr": 0.5} for s in (10, 20, 30, 40)]
    held_out = [{"step": 0, "samples": 0, "val_loss": 2.1}, points[1] | {"val_loss": 1.95}]
    lines = [held_out[0], points[0], held_out[1], *points[2:]]
    (run / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in lines))
    listed = []
    for step, shade in ((0, 20), (10, 40), (40, 200)):
        name = f"step-{step:07d}.webp"
        sheet = Image.new("RGB", (3 * 96, 3 * 96))
        for row in range(3):
            sheet.paste((shade + row,) * 3, (96, 96 * row, 192, 96 * row + 96))
            sheet.paste("white", (192, 96 * row, 288, 96 * row + 96))
        sheet.save(run / "pictures" / name, lossless=True)
        listed.append({"step": step, "samples": 32 * step, "file": name})
    index = {"photos": ["one", "two", "three"], "pictures": listed}
    (run / "pictures" / "index.json").write_text(json.dumps(index))
    weights = tmp_path_factory.mktemp("weights") / "contrast.safetensors"
    network = MAE(replace(SIZES["debug"], target="norm_pixel_stats"))
    store.write(weights, network, name="contrast", card={"recipe": {"loss_on": "all"}})
    prove(weights)  # so that the server needs no torch
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNMASK_RUN", str(run))
        patch.setenv("UNMASK_MODELS", f"mini-random,contrast={weights}")
        with started_server(tmp_path_factory.mktemp("log") / "server.log") as url:
            _load(f"{url}/v1/models/contrast")
            yield url


def _load(url: str) -> None:
    """Ask until the model is there: only the first one is loaded at start."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60):
                return
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
            time.sleep(1)


def test_a_slider_walks_through_the_pictures_of_a_run(new_page: OpenPage, run_url: str) -> None:
    learn = open_tab(new_page(url=run_url), "learn")
    learn.page.locator(".um-training-names button", has_text="going-on").click()
    # The record of the shipped model, six photos, makes room for the run's three.
    learn.page.wait_for_function("document.querySelectorAll('.um-training-sheet canvas').length === 3")
    assert learn.one(".um-training-now").inner_text() == "step 40 · 1,280 crops · loss 1.6"
    held_out = "On photos held out from the training the loss was 2.1 at step 0 and 1.95 at step 20."
    assert held_out in learn.one(".um-training-lead").inner_text()
    assert held_out in (learn.one(".um-curve-canvas").get_attribute("aria-label") or "")
    assert learn.one(".um-key-val").is_visible()
    shade = "document.querySelector('.um-training-sheet canvas').getContext('2d').getImageData(9, 9, 1, 1).data[0]"
    learn.page.wait_for_function(f"{shade} === 200")
    learn.one("#um-training-step").focus()
    learn.page.keyboard.press("ArrowLeft")
    learn.page.wait_for_function(f"{shade} === 40")
    assert learn.one(".um-training-now").inner_text() == "step 10 · 320 crops · loss 1.9"
    assert learn.one(".um-training-sheet canvas").evaluate_all(SHADES) == [
        [40 + row, 0, 255] for row in range(3)
    ]
    assert "one" in (learn.one(".um-training-sheet canvas").first.get_attribute("aria-label") or "")
    learn.page.keyboard.press("ArrowLeft")
    learn.page.wait_for_function(f"{shade} === 20")
    assert learn.one(".um-training-now").inner_text() == "step 0 · 0 crops", "no loss before the first step"
    assert axe_findings(learn) == set()
    learn.screenshot("learn-training", full=True)


def test_a_model_of_pixels_is_shown_what_others_predict(new_page: OpenPage, run_url: str) -> None:
    learn = open_tab(new_page(url=run_url), "learn")
    learn.one(".um-positions-hidden-fact:not(:empty)").wait_for()
    assert learn.one(".um-normalised-tiles canvas").count() == 3
    assert "does not need them" in learn.one(".um-normalised-answer").inner_text()


def test_a_model_of_normalised_pixels_answers_the_second_question_itself(
    new_page: OpenPage, run_url: str
) -> None:
    page = new_page(url=run_url)
    page.url += "?model=contrast&view=oracle"
    learn = open_tab(page, "learn")
    learn.one(".um-normalised-tiles figcaption span:not(:empty)").first.wait_for()
    assert learn.one(".um-normalised-tiles b").all_inner_texts() == [
        "Predicted by the model as well",
        "Estimated from visible patches",
        "Left out: contrast alone",
        "Taken from the original: uses the answer",
    ]
    assert "uses the answer" in learn.one(".um-normalised-answer").inner_text()
    assert "(uses the answer)" in learn.one(".um-loss-raw-fact").inner_text()
    assert learn.one(".um-step-title").all_inner_texts()[1] == "2 Hide 75%"
    pixels = learn.one(".um-step[data-step=pixels]")
    assert "770 numbers: 16 × 16 × 3 and 2" in pixels.inner_text()
    pixels.click()
    assert "770 numbers" in learn.one(".um-step-detail").inner_text()
    assert "× 16 × 770" in learn.one(".um-sizes").inner_text()
    assert "visible ones counted as well" in learn.one(".um-loss-lead").inner_text()
    assert "Visible patches count" in learn.one(".um-loss-map-fact").inner_text()
    assert "no training record" in learn.one(".um-training-lead").inner_text()


# On paper a grid or a flex box does not grow with what moves to the next page: it covers what follows, or cuts it off.
UNSAFE = """(root) => {
  const found = [];
  for (let node = root; node; node = node.parentElement) {
    const { display, overflow } = getComputedStyle(node);
    if (display !== 'block' || overflow !== 'visible')
      found.push(`${node.tagName} ${node.className}: ${display} ${overflow}`);
  }
  return found;
}"""


def test_on_paper_the_steps_are_all_there_in_dark_on_white(new_page: OpenPage) -> None:
    learn = open_tab(new_page(scheme="dark"), "learn")
    learn.page.emulate_media(media="print")
    assert learn.one(".um-step:visible").count() == 7
    assert [learn.one(place).first.evaluate(UNSAFE) for place in (".um-steps", ".um-tiles")] == [[], []]
    dark = "document.body.classList.contains('dark')"
    learn.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert not learn.evaluate(dark)
    learn.evaluate("dispatchEvent(new Event('afterprint'))")
    assert learn.evaluate(dark)
    learn.page.emulate_media(media="screen")
