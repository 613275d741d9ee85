"""What can be said of the page without a browser: words, markup, colours, samples."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model import samples
from model.masking import SAMPLERS
from model.views import VIEWS
from ui.page import TABS, build_page
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


def text_of(paths: Iterable[Path]) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in paths)


def known() -> set[str]:
    return {f"{section}.{key}" for section, texts in load_words("en").items() for key in texts}


def built_words() -> dict[str, set[str]]:
    """Words whose names the scripts put together: what is written of the name -> what they put behind it."""
    markup, script = text_of(MARKUP), text_of(SCRIPTS)

    def radios(name: str) -> set[str]:
        return set(re.findall(rf'name="um-{name}" value="(\w+)"', markup))

    def spelt(pattern: str) -> set[str]:
        found = set(re.findall(pattern, script))
        assert found, pattern
        return found

    views = set(VIEWS) - {"pixels"}
    waiting = {"away", "limited", "loading", "busy"}  # what patiently tells
    reported = spelt(r"(?:report|later|abort)\('(\w+)'") - {"bar", "slow", "queue", "idle", "replaced"}
    refused = spelt(r"'(?:image|mask|too)-\w+': '(\w+)'") | {"refused"}
    return {
        "tabs.": set(TABS),
        "sample.": {sample["name"] for sample in load_samples()},
        "strategy.": radios("strategy"),
        "strategy._hint": {f"{name}_hint" for name in radios("strategy")},
        "use.": set(SAMPLERS),
        "alt.": radios("view"),
        "view.honest_": {f"honest_{view}" for view in views},
        "view.note_": {f"note_{view}" for view in views},
        "figure.": {"normalised", "oracle"},  # that must not be held against others
        "status.": waiting | reported | refused | {"gone", "too_long"},
    }


def test_every_word_the_page_asks_for_exists() -> None:
    markup, script, sections = text_of(MARKUP), text_of(SCRIPTS), load_words("en")
    asked = set(re.findall(r'data-(?:t|label|title)="([^"]+)"', markup))
    asked |= {key for key in re.findall(r"'([a-z]+\.[a-z_]+)'", script) if key.split(".")[0] in sections}
    built = built_words()
    asked |= {stem.split(".")[0] + "." + key for stem, keys in built.items() for key in keys}
    assert asked - known() == set()
    joined = re.findall(r"'([a-z]+\.)' *\+|`([a-z]+\.[a-z_]*)\$\{[^}]+\}([a-z_]*)`", script)
    stems = {"".join(parts) for parts in joined}
    assert {stem for stem in stems if stem.split(".")[0] in sections} == set(built)


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
    sources = text_of([*MARKUP, *SCRIPTS, *ASSETS.parent.rglob("*.py")])
    whole = {
        word
        for word in known()
        if word in sources or f"'{word.split('.')[1]}'" in sources or f'"{word.split(".")[1]}"' in sources
    }
    built = {stem.split(".")[0] + "." + key for stem, keys in built_words().items() for key in keys}
    assert known() - whole - built == set()


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
