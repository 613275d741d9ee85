"""The three forms of a request and the forms of the answer, with the real network in its smallest size."""

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from model import PANELS, Reconstructor, provenance
from server.answers import ENCODINGS
from tests.server.conftest import build_app, photo, problem_of, running

MAX_BYTES = 64 * 1024
PHOTO = photo()
TEXT = base64.b64encode(PHOTO).decode()
CONTENT_KEYS = ("hidden", "mask_hash", "images", "metrics", "ratio", "seed", "strategy")


@pytest.fixture(scope="module")
def client(reconstructor: Reconstructor) -> Iterator[TestClient]:
    app, _ = build_app(reconstructor, max_bytes=MAX_BYTES)
    with running(app) as client:
        yield client


def by_form(client: TestClient, accept: str = "*/*", image: bytes = PHOTO, **fields: Any) -> Any:
    headers = {"accept": accept}
    return client.post("/v1/reconstruct", files={"image": ("a", image)}, data=fields, headers=headers)


def by_body(client: TestClient, image: bytes = PHOTO, kind: str = "image/png", **query: Any) -> Any:
    headers = {"content-type": kind}
    return client.post("/v1/reconstruct", content=image, params=query, headers=headers)


def by_json(client: TestClient, **fields: Any) -> Any:
    headers = {"content-type": "application/json"}
    body = json.dumps({"image": TEXT} | fields)  # as ASCII, which takes halves of characters too
    return client.post("/v1/reconstruct", content=body, headers=headers)


def errors_of(answer: Any, status: int = 422) -> list[str]:
    return [error["field"] for error in problem_of(answer, status)["errors"]]


def content_of(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return {key: body[key] for key in CONTENT_KEYS}


def test_all_three_forms_of_a_request_give_the_same_answer(client: TestClient) -> None:
    form = content_of(by_form(client, strategy="block", ratio="0.5", seed="7", panels="masked,error"))
    query: dict[str, Any] = {"strategy": "block", "ratio": "0.5", "seed": "7", "panels": "masked,error"}
    assert content_of(by_body(client, **query)) == form
    assert content_of(by_body(client, kind="image/jpeg", **query)) == form, "the content decides"
    fields = {"strategy": "block", "ratio": 0.5, "seed": 7, "panels": ["masked", "error"]}
    assert content_of(by_json(client, **fields)) == form
    assert content_of(by_json(client, **fields | {"image": "data:image/png;base64," + TEXT})) == form
    texts = {"strategy": "block", "ratio": "0.5", "seed": "7", "panels": "masked,error", "drawing": None}
    assert content_of(by_json(client, **texts)) == form


@pytest.mark.parametrize("ratio", [0.1 + 0.2, 1 - 0.9, 0.15000000000000002, 5e-1, 9.9e-2])
def test_a_ratio_may_look_as_computed_ones_do(ratio: float, client: TestClient) -> None:
    answer = by_json(client, ratio=ratio).json()
    assert answer["ratio"] == pytest.approx(ratio, abs=1 / 16), "to a patch of sixteen"


def test_a_ratio_that_is_no_number_is_told_in_words(client: TestClient) -> None:
    for ratio in ("x", "1e400", "0.75%", True, [0.75], 10**20):
        assert by_json(client, ratio=ratio).json()["errors"][0]["message"] == (
            "'ratio' is wrong: must be a decimal number such as 0.75."
        )


def test_a_form_may_have_its_options_in_the_query_but_not_two_of_them(client: TestClient) -> None:
    files = {"image": ("a", PHOTO)}
    answer = client.post("/v1/reconstruct", files=files, params={"seed": "3"})
    assert answer.json()["seed"] == 3
    same = client.post("/v1/reconstruct", files=files, params={"seed": "3"}, data={"seed": "3"})
    assert same.json()["seed"] == 3
    twice = client.post("/v1/reconstruct", files=files, params={"seed": "3"}, data={"seed": "4"})
    assert errors_of(twice) == ["seed"]
    in_json = {"image": TEXT, "seed": 3, "ssim": False}
    assert client.post("/v1/reconstruct?seed=3&ssim=false", json=in_json).json()["seed"] == 3
    assert errors_of(client.post("/v1/reconstruct?seed=4", json=in_json)) == ["seed"]
    assert errors_of(client.post("/v1/reconstruct?seed=1&seed=1", files=files)) == ["seed"]
    assert errors_of(client.post("/v1/reconstruct?sed=1", files=files)) == ["sed"]


def test_lists_and_drawings_come_in_json_too(client: TestClient) -> None:
    assert by_json(client, strategy="indices", indices=[0, 5]).json()["hidden"] == [0, 5]
    file = io.BytesIO()
    drawing = Image.new("L", (64, 64), 0)
    drawing.paste(255, (0, 0, 32, 16))
    drawing.save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    assert by_json(client, strategy="drawing", drawing=text).json()["hidden"] == [0, 1]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"image": None}, ["image"]),
        ({"image": 3}, ["image"]),
        ({"image": "no base64!"}, ["image"]),
        ({"image": "AAAA\nAAAA"}, ["image"]),
        ({"image": "\ud800"}, ["image"]),
        ({"image": ["AAAA"]}, ["image"]),
        ({"seed": True}, ["seed"]),
        ({"seed": 1.5}, ["seed"]),
        ({"seed": 10**400}, ["seed"]),
        ({"ratio": True}, ["ratio"]),
        ({"ratio": 0}, ["ratio"]),
        ({"indices": {"a": 1}, "strategy": "indices"}, ["indices"]),
        ({"indices": [1.0], "strategy": "indices"}, ["indices"]),
        ({"panels": ["masked", 1]}, ["panels"]),
        ({"panels": []}, ["panels"]),
        ({"strategy": "\ud800"}, ["strategy"]),
        ({"strategy": 1}, ["strategy"]),
        ({"panel": "x"}, ["panel"]),
        ({"\ud800": 1}, ["\ud800"]),
        ({"ratios": "x", "seed": "x"}, ["ratios"]),
    ],
)
def test_wrong_json_fields_are_named(fields: dict[str, Any], named: list[str], client: TestClient) -> None:
    assert errors_of(by_json(client, **fields)) == named


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff",
        b'{"seed": NaN}',
        b"[" * 60_000,
        b'{"seed": %s}' % (b"9" * 9000),
        PHOTO + b"[" * 100,
        json.dumps({"seed": "1" * 70_000}).encode("utf-16"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes, client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    answer = client.post("/reconstruct", content=body, headers=headers)
    assert errors_of(answer, 400) == ["body"]
    assert "not a JSON object" in answer.json()["detail"]
    assert answer.json()["type"].endswith(":json")


@pytest.mark.parametrize(
    "values",
    ["[]," * 30_000, "0," * 40_000, '"a",' * 20_000, '"' + "é" * 70_000 + '",'],
    ids=["lists", "numbers", "texts", "long"],
)
def test_json_that_is_large_beside_its_files_is_refused_before_it_is_read(
    values: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("json.loads", lambda *_, **__: pytest.fail("it is read"))
    body = f'{{"image": "{TEXT}", "indices": [{values}0]}}'.encode()
    answer = client.post("/reconstruct", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert "errors" in answer.text


@pytest.mark.parametrize(
    "name", ["seed", "hidden_count", "samples", "ratio", "indices", "panels", "panel", "interpolation", "x"]
)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("depth", [8, 200, 960])
def test_lists_in_lists_are_refused_however_deep(
    name: str, opening: str, closing: str, depth: int, client: TestClient
) -> None:
    nested = f"{opening * depth}1{closing * depth}"
    body = f'{{"image": "{TEXT}", "{name}": {nested}, "view": ["x"]}}'
    answer = client.post("/reconstruct?seed=1", content=body, headers={"content-type": "application/json"})
    if depth == 8:
        assert name in errors_of(answer)
    else:
        assert errors_of(answer, 400) == ["body"]


def test_long_texts_of_json_are_what_they_were(client: TestClient) -> None:
    headers = {"content-type": "application/json"}

    def told(image: str, further: str = "") -> Any:
        body = f'{{ "seed" :7,"image"\n:{image}{further}}}'
        return client.post("/v1/reconstruct", content=body, headers=headers)

    plain = content_of(told(f'"{TEXT}"'))
    escaped = TEXT.replace("/", "\\/").replace("+", "\\u002B")
    for text in (escaped, f"data:image/png;base64,{TEXT}", f"data:image\\/png;base64,{escaped}"):
        assert content_of(told(f'"{text}"')) == plain
    assert errors_of(told(f'"{TEXT}\\n"')) == ["image"]
    for broken in (f'"{TEXT}', f"{TEXT}", f'NaN, "drawing": "{TEXT}"', f'"a"{TEXT}"b"', f'"a,\\"{TEXT}\\x"'):
        assert errors_of(told(broken), 400) == ["body"]
    assert errors_of(told(f'"{TEXT}"', ', "drawing": Infinity'), 400) == ["body"]


def test_a_json_field_that_is_there_twice_is_refused(client: TestClient) -> None:
    body = f'{{"image": "{TEXT}", "seed": 1, "seed": 2}}'
    headers = {"content-type": "application/json; charset=utf-8"}
    assert errors_of(client.post("/reconstruct", content=body, headers=headers)) == ["seed"]


def test_sizes_are_checked_in_every_form(client: TestClient) -> None:
    large = b"x" * (MAX_BYTES + 1)
    assert errors_of(by_body(client, large), 413) == ["image"]
    assert errors_of(by_json(client, image=base64.b64encode(large).decode()), 413) == ["image"]
    assert errors_of(by_json(client, image="A" * 100_000), 413) == ["image"]
    assert errors_of(by_json(client, drawing="A" * 100_000, strategy="drawing"), 413) == ["drawing"]
    assert errors_of(by_json(client, image="A" * 2_000_000), 413) == ["body"]


def test_a_picture_as_body_must_be_there_and_be_one(client: TestClient) -> None:
    assert errors_of(by_body(client, b"")) == ["image"]
    assert errors_of(by_body(client, b"no picture"), 415) == ["image"]


def test_a_named_panel_picks_one_picture(client: TestClient) -> None:
    answers = {
        (kind, panel): by_form(
            client, f"image/{kind}", seed="1", **(dict[str, Any](panel=panel) if panel else {})
        )
        for kind in ("png", "webp", "jpeg")
        for panel in ("", "sheet", *PANELS)
    }
    for (kind, panel), answer in answers.items():
        assert answer.headers["content-type"] == f"image/{kind}"
        picture = Image.open(io.BytesIO(answer.content))
        assert picture.format == kind.upper()
        wide = panel in ("", "sheet")
        assert picture.size == ((3 * 64 + 2 * 8, 64) if wide else (64, 64))
        exact = np.asarray(Image.open(io.BytesIO(answers["png", panel].content)).convert("RGB"), np.float32)
        close = np.abs(np.asarray(picture.convert("RGB"), np.float32) - exact).mean()
        assert close == 0 if kind != "jpeg" else close < 8  # noise is what JPEG is worst at
    assert errors_of(by_form(client, panel="masked")) == ["panel"]
    assert errors_of(by_form(client, "image/png", panel="masked", panels="error")) == ["panel"]


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("fields", [{}, {"panel": "error", "cover": "complete", "fit": "whole"}])
def test_a_picture_at_full_size_is_the_library_s_own(
    kind: str, fields: dict[str, Any], client: TestClient, reconstructor: Reconstructor
) -> None:
    answer = by_form(client, f"image/{kind}", seed="1", full_size="true", **fields)
    changes = {name: value for name, value in fields.items() if name != "panel"}
    result, panel = reconstructor(PHOTO, seed=1, **changes), fields.get("panel", "pasted")
    pixels = result.full_size(PHOTO, panel)
    saving = ENCODINGS[f"image/{kind}"]
    assert answer.content == provenance.write(pixels, result.settings((panel,)), **saving)
    assert Image.open(io.BytesIO(answer.content)).size == Image.open(io.BytesIO(PHOTO)).size
    assert answer.headers["x-unmask-seed"] == "1"


def test_full_size_is_for_one_picture_and_has_a_bound(
    client: TestClient, reconstructor: Reconstructor
) -> None:
    assert errors_of(by_json(client, full_size=True)) == ["full_size"]
    assert errors_of(by_form(client, "image/png", full_size="true", panel="sheet")) == ["full_size"]
    assert errors_of(by_form(client, "image/png", full_size="true", panels="error")) == ["full_size"]
    app, _ = build_app(reconstructor, batch_bytes=64 * 1024)
    with running(app) as small:
        assert errors_of(
            by_form(small, "image/png", full_size="true", image=photo(size=(300, 300))), 413
        ) == ["full_size"]
        assert by_form(small, "image/jpeg", full_size="true").status_code == 200


def test_every_answer_says_seed_mask_and_model(client: TestClient, reconstructor: Reconstructor) -> None:
    told = by_form(client, seed="9")
    body = told.json()
    bits = np.zeros(16, np.uint8)
    bits[body["hidden"]] = 1
    assert body["mask_hash"] == hashlib.sha256(np.packbits(bits).tobytes()).hexdigest()[:16]
    assert body["model_digest"] == reconstructor.digest
    for answer in (told, by_form(client, "image/webp", seed="9")):
        assert answer.headers["x-unmask-seed"] == "9"
        assert answer.headers["x-unmask-hidden-count"] == "12"
        assert answer.headers["x-unmask-mask"] == body["mask_hash"]
        assert answer.headers["x-unmask-model"] == reconstructor.digest
        assert answer.headers["cache-control"] == "no-store"
    assert "x-unmask-seed" not in by_json(client, strategy="indices", indices=[1]).headers


def test_a_repeatable_answer_has_a_tag_that_all_it_depends_on_changes(
    client: TestClient, reconstructor: Reconstructor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = by_form(client, seed="9").headers["etag"]
    assert by_form(client, seed="9").headers["etag"] == tag
    assert by_body(client, seed="9").headers["etag"] == tag
    assert by_json(client, strategy="indices", indices=[1]).headers["etag"]
    others = [
        by_form(client, seed="8"),
        by_form(client, "image/png", seed="9"),
        by_form(client, seed="9", ratio="0.5"),
        by_form(client, image=photo(1), seed="9"),
    ]
    with monkeypatch.context() as elsewhere:  # as another replica computes
        elsewhere.setattr(reconstructor.loaded.engine, "precision", "bfloat16")
        others.append(by_form(client, seed="9"))
    assert len({answer.headers["etag"] for answer in others} | {tag}) == 6
    assert "etag" not in by_form(client).headers


def test_the_examples_of_the_description_work(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1/reconstruct"]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        accept = "image/png" if example["value"].get("full_size") else "application/json"
        answer = client.post("/v1/reconstruct", json=example["value"], headers={"accept": accept})
        assert (answer.status_code, answer.headers["content-type"]) == (200, accept)
    for status, response in operation["responses"].items():
        if status != "200":
            assert response["content"]["application/problem+json"]["example"]["status"] == int(status)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    ["strategy", "ratio", "hidden_count", "seed", "indices", "panels", "panel", "drawing", "x"]
)
pictures = st.one_of(
    st.just(TEXT), st.binary(max_size=80).map(lambda b: base64.b64encode(b).decode()), anything
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    fields=st.dictionaries(names, anything, max_size=3),
    image=pictures,
    cut=st.one_of(st.none(), st.integers(0, 60)),
    as_json=st.booleans(),
)
def test_no_body_is_answered_with_our_failure(
    fields: dict[str, Any], image: Any, cut: int | None, as_json: bool, client: TestClient
) -> None:
    if as_json:
        body = json.dumps({"image": image} | fields).encode()[:cut]
        headers = {"content-type": "application/json", "accept": "application/json, image/webp;q=0.5"}
        answer = client.post("/reconstruct", content=body, headers=headers)
    else:
        query = {name: json.dumps(value) for name, value in fields.items()}
        answer = by_body(client, PHOTO[:cut], **query)
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, answer.text
        assert problem_of(answer, answer.status_code)["errors"]
