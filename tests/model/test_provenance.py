"""What a picture says about itself, and what a stranger's picture may not say."""

from __future__ import annotations

import io
import json
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from model import Options, Reconstructor, UnmaskError, provenance
from model.errors import MaskError
from model.masking import Mask
from model.result import Reconstruction
from tests.pictures import encoded, photo

PICTURE = encoded(photo())
VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
PIXELS = photo(32, 32)


@pytest.fixture
def result(reconstructor: Reconstructor) -> Reconstruction:
    return reconstructor(PICTURE, Options(seed=1))


def _xmp(data: bytes) -> str:
    packet = Image.open(io.BytesIO(data)).info["xmp"]
    return packet.decode() if isinstance(packet, bytes) else packet


@pytest.mark.parametrize(
    ("panel", "term"),
    [
        ("pasted", "compositeWithTrainedAlgorithmicMedia"),
        ("reconstruction", "trainedAlgorithmicMedia"),
    ],
)
def test_a_painted_picture_names_its_source(result: Reconstruction, panel: str, term: str) -> None:
    assert f'DigitalSourceType="{VOCABULARY}{term}"' in _xmp(result.png(panel))


@pytest.mark.parametrize("panel", ["original", "masked", "error"])
def test_a_picture_without_paint_claims_none_and_still_carries_its_settings(
    result: Reconstruction, panel: str
) -> None:
    assert "DigitalSourceType" not in _xmp(result.png(panel))
    assert provenance.read(result.png(panel))


def test_a_sheet_with_a_painted_panel_is_a_composite(result: Reconstruction) -> None:
    assert "compositeWithTrainedAlgorithmicMedia" in _xmp(result.sheet())
    assert "DigitalSourceType" not in _xmp(result.sheet(("masked", "original")))


def test_the_packet_is_xml_that_others_can_read(result: Reconstruction) -> None:
    from xml.etree import ElementTree

    packet = _xmp(provenance.write(PIXELS, result.settings(("pasted",)), format="JPEG"))
    tree = ElementTree.fromstring(packet[packet.index("<x:xmpmeta") : packet.index("<?xpacket end")])
    (description,) = tree.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    value = description.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"]
    assert value.endswith("compositeWithTrainedAlgorithmicMedia")
    assert json.loads(description.attrib["{urn:x-unmask:settings#}settings"])["seed"] == 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "AVIF"])
def test_settings_come_back_from_every_format(result: Reconstruction, kind: str) -> None:
    given = result.settings(("pasted",))
    read = provenance.read(provenance.write(PIXELS, given, format=kind))
    assert read == {key: value for key, value in given.items() if value is not None}
    assert read["model"] == "debug"
    assert len(read["model_digest"]) == 64


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(ratio="0.3", strategy="block"),
        Options(hidden_count=3, strategy="grid"),
        Options(strategy="indices", indices=(0, 7, 15)),
        Options(
            strategy="drawing", drawing=encoded(np.eye(4, dtype=np.uint8).repeat(4, 0).repeat(4, 1) * 255)
        ),
        Options(crop=(3, 4, 50), cover="complete"),
        Options(fit="whole", cover="ensemble", samples=2),
        Options(fit="whole", grid=(5, 6), positions="hidden_only"),
        Options(fit="whole", strategy="indices", indices=(0, 19)),
    ],
    ids=lambda options: f"{options.strategy}-{options.fit}-{options.cover}",
)
def test_a_picture_read_back_is_made_again_to_the_byte(
    reconstructor: Reconstructor, options: Options
) -> None:
    first = reconstructor(PICTURE, options).png("pasted")
    read = provenance.read(first)
    assert read
    again = reconstructor(PICTURE, Options.from_settings(read))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(first))), again.panel("pasted"))


def test_the_oracle_is_named_in_the_file(reconstructor: Reconstructor) -> None:
    text = _xmp(
        provenance.write(PIXELS, {provenance.MARK: provenance.FORM, "view_note": "Uses the answer: ..."})
    )
    assert "Uses the answer" in text


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 1000))
def test_masks_survive_packing(rows: int, columns: int, seed: int) -> None:
    hidden = np.random.default_rng(seed).random(rows * columns) < 0.5
    mask = Mask((rows, columns), hidden)
    bits, grid = provenance.pack(mask)
    assert grid == f"{rows}x{columns}"
    assert provenance.unpack(bits, mask.grid) == tuple(mask.indices)


# --- strangers --------------------------------------------------------------------------------------------


def _with(text: str, keyword: str = "parameters") -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(keyword, text)
    return encoded(PIXELS, pnginfo=info)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "7", '"unmask"', "{}", '{"unmask": 2}', '{"unmask": true}', '{"seed": 1}',
        "[" * 10_000, '{"unmask": 1, "a": ' + "[" * 8000 + "]" * 8000 + "}",
        '{"unmask": 1, "seed": ' + "9" * 5000 + "}",
        '{"unmask": 1}' + " " * 20_000, "masterpiece, best quality, Steps: 20, Seed: 1",
    ],
    ids=range(15),
)  # fmt: skip
def test_text_that_is_no_settings_is_none(text: str) -> None:
    assert provenance.read(_with(text)) is None


def test_only_known_names_of_the_right_type_come_out() -> None:
    given = {
        "unmask": 1, "seed": 3, "target": 3, "ratio": 0.5, "panels": ["pasted", 3], "mask": "f" * 5000,
        "strategy": True, "model": None, "evil": "x", "samples": 2**60, "hidden_count": 10**400, "cover": "complete",
    }  # fmt: skip
    assert provenance.read(_with(json.dumps(given))) == {"unmask": 1, "seed": 3, "cover": "complete"}
    for name, most, more in (("seed", 2**53 - 1, 2**53), ("panels", ["x" * 64], ["x" * 65])):
        assert provenance.read(_with(json.dumps({"unmask": 1, name: most}))) == {"unmask": 1, name: most}
        assert provenance.read(_with(json.dumps({"unmask": 1, name: more}))) == {"unmask": 1}


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(PIXELS), encoded(PIXELS, "GIF")])
def test_a_file_without_settings_is_none(data: bytes) -> None:
    assert provenance.read(data) is None


def test_a_bomb_of_text_is_none() -> None:
    png = encoded(PIXELS)
    chunk = b"parameters\0\0" + zlib.compress(b'{"unmask": 1}' + b" " * 50_000_000, 9)
    bomb = len(chunk).to_bytes(4, "big") + b"zTXt" + chunk + zlib.crc32(b"zTXt" + chunk).to_bytes(4, "big")
    assert provenance.read(png[:33] + bomb + png[33:]) is None


@pytest.mark.parametrize(
    "given",
    [
        {"strategy": "indices"},
        {"strategy": "indices", "mask": "ff", "mask_grid": "4x4"},
        {"strategy": "indices", "mask": "zzzz", "mask_grid": "4x4"},
        {"strategy": "drawing", "mask": "ffff", "mask_grid": "four"},
    ],
)
def test_settings_that_do_not_hold_together_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(MaskError) as caught:
        Options.from_settings({provenance.MARK: provenance.FORM, **given})
    assert caught.value.hint


_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(max_size=9))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given=st.dictionaries(st.sampled_from([*provenance.FIELDS, "other"]), _VALUES))
def test_any_settings_of_a_stranger_are_used_or_refused(
    reconstructor: Reconstructor, given: dict[str, Any]
) -> None:
    read = provenance.read(_with(json.dumps({**given, provenance.MARK: provenance.FORM})))
    assert read is not None
    assert read.keys() <= provenance.FIELDS.keys()
    json.dumps(read, allow_nan=False)
    try:
        reconstructor.prepare(PICTURE, Options.from_settings(read))
    except UnmaskError as error:
        refusal = error.hint
        assert refusal
