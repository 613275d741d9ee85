"""What can be said of the page without a browser: words, markup, colours, samples."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model import samples
from model.views import VIEWS
from ui.page import build_page
from ui.strings import LANGUAGES, load_languages, load_words
from ui.tabs.explore import load_samples
from ui.theme import ASSETS, FONTS, head

DESCRIPTION: dict[str, object] = {"name": "small", "grid": [14, 14], "image_size": 224, "digest": "0"}
SCRIPTS = sorted(ASSETS.glob("*.js"))
MARKUP = sorted(ASSETS.glob("*.html"))


def config_of(description: dict[str, object]) -> Any:
    async def build() -> Any:  # in a loop, because Gradio makes one that it never closes where there is none
        return build_page(description).get_config_file()

    return asyncio.run(build())


def test_the_page_uses_no_gradio_events() -> None:
    assert config_of(DESCRIPTION)["dependencies"] == []


def test_the_model_name_reaches_the_page_as_data_only() -> None:
    name = "${alert(1)}<img src=x>{{name}}"
    widgets = [c["props"] for c in config_of(DESCRIPTION | {"name": name})["components"]]
    templates = [
        w.get("html_template", "") + w.get("js_on_load", "") for w in widgets if "html_template" in w
    ]
    assert templates
    assert not any(name in template for template in templates)
    assert name in json.dumps(widgets, ensure_ascii=False)


@pytest.mark.parametrize("path", MARKUP, ids=lambda path: path.name)
def test_markup_is_constant(path: Path) -> None:
    """Gradio compiles it as a script: nothing in it may look like one."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\$\{|\{\{|`|\\|<script", text)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_write_no_markup(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
    )
    assert not re.search(r"https?://", text), "no outside address"


def test_every_word_the_page_asks_for_exists() -> None:
    words = load_words("en")
    known = {f"{section}.{key}" for section, texts in words.items() for key in texts}
    markup = "".join(path.read_text(encoding="utf-8") for path in MARKUP)
    script = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    asked = set(re.findall(r'data-(?:t|label|title)="([^"]+)"', markup))
    asked |= {key for key in re.findall(r"'([a-z]+\.[a-z_]+)'", script) if key.split(".")[0] in words}
    assert asked - known == set()


def test_every_language_has_the_same_words_with_the_same_blanks() -> None:
    languages = load_languages()
    assert set(languages) == set(LANGUAGES)
    blanks = {
        language: {
            f"{section}.{key}": sorted(re.findall(r"\{\w+\}", text))
            for section, texts in words.items()
            for key, text in texts.items()
        }
        for language, words in languages.items()
    }
    for language in LANGUAGES:
        assert blanks[language] == blanks["en"]


def test_every_sample_has_a_title_in_every_language() -> None:
    names = {sample["name"]: sample["title"] for sample in load_samples()}
    assert load_words("en")["sample"] == names
    assert set(load_words("zh")["sample"]) == set(names)


def test_every_view_of_normalised_pixels_has_its_words() -> None:
    for words in load_languages().values():
        for view in set(VIEWS) - {"pixels"}:
            assert {f"honest_{view}", f"note_{view}"} <= set(words["view"]), (
                "without them Explore leaves it out"
            )


def test_no_word_is_left_unused() -> None:
    words = load_words("en")
    sources = "".join(
        p.read_text(encoding="utf-8") for p in [*MARKUP, *SCRIPTS, *ASSETS.parent.rglob("*.py")]
    )
    unused = {
        f"{section}.{key}"
        for section, texts in words.items()
        for key in texts
        if f"{section}.{key}" not in sources and f"'{key}'" not in sources and f'"{key}"' not in sources
    }
    built = {
        key
        for key in unused
        if key.startswith(
            ("strategy.", "status.", "alt.", "sample.", "tabs.", "view.honest_", "view.note_", "figure.")
        )
    }  # put together by the script
    assert unused - built == set()


def test_at_least_six_samples_of_free_licence_at_448_pixels() -> None:
    offered = load_samples()
    assert len(offered) >= 6
    for sample in offered:
        assert sample["licence"] in ("CC0", "Public domain")
        assert sample["thumb"].startswith("data:image/webp;base64,")
        with Image.open(samples.FOLDER / f"{sample['name']}.jpg") as picture:
            assert picture.size == (448, 448)
            assert picture.format == "JPEG"


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(d * 2 for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_the_tokens_pass_wcag_aa(scheme: int) -> None:
    blocks = re.findall(r"\{([^{}]*--um-ink[^{}]*)\}", head())
    token = dict(re.findall(r"--um-([a-z-]+): (#[0-9a-f]+)", blocks[scheme]))
    for ground in ("paper", "surface"):
        for text in ("ink", "muted", "accent", "bad", "good"):
            assert contrast(token[text], token[ground]) >= 4.5, (text, ground)
        assert contrast(token["border"], token[ground]) >= 3
    assert contrast(token["on-accent"], token["accent"]) >= 4.5


def test_style_and_fonts_name_no_outside_host() -> None:
    assert "http" not in head()
    assert "url(" not in head()
    assert not any("/" in font for font in FONTS)
