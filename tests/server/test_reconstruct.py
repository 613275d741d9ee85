"""The whole path with the real network in its smallest size."""

import asyncio
import base64
import io
import json
import threading
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from model import PANELS, Reconstructor, provenance
from tests.server.conftest import build_app, into, photo, post, problem_of, running

PATCHES = 16  # of the debug size


@pytest.fixture(scope="module")
def client(reconstructor: Reconstructor) -> Iterator[TestClient]:
    app, _ = build_app(reconstructor)
    with running(app) as client:
        yield client


def encode(kind: str, size: tuple[int, int] = (80, 72)) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(photo(size=size))).save(file, kind)
    return file.getvalue()


def test_the_answer_says_all_that_is_needed_to_repeat_it(client: TestClient) -> None:
    answer = post(client, photo()).json()
    assert answer["model"] == "debug"
    assert (answer["strategy"], answer["ratio"], answer["grid"]) == ("random", 0.75, [4, 4])
    assert len(answer["hidden"]) == 12
    assert 0 <= answer["seed"] < 2**32
    assert {"mse", "nmse", "psnr_db", "ssim", "colour_error_percent", "plain_fill"} <= answer[
        "metrics"
    ].keys()
    assert {"prepare", "run", "finish"} <= answer["timings_ms"].keys()
    for name in ("masked", "reconstruction", "original"):
        kind, _, data = answer["images"][name].partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 64)


def test_a_drawn_seed_replays_to_the_same_bytes(client: TestClient) -> None:
    first = post(client, photo()).json()
    again = post(client, photo(), seed=first["seed"]).json()
    for key in ("hidden", "images", "metrics", "ratio"):
        assert again[key] == first[key]
    drawn = post(client, photo(), headers={"accept": "image/png"})
    replayed = post(client, photo(), seed=drawn.headers["x-unmask-seed"], headers={"accept": "image/png"})
    assert replayed.content == drawn.content
    assert Image.open(io.BytesIO(drawn.content)).width >= 3 * 64


def test_two_drawn_seeds_differ(client: TestClient) -> None:
    assert post(client, photo()).json()["seed"] != post(client, photo()).json()["seed"]


@pytest.mark.parametrize(
    ("fields", "hidden"),
    [
        ({"ratio": "0.5"}, 8),
        ({"hidden_count": "1"}, 1),
        ({"strategy": "grid"}, 12),
        ({"strategy": "block", "ratio": "0.5"}, 8),
        ({"strategy": "indices", "indices": "[0, 5, 15]"}, 3),
    ],
)
def test_every_strategy_hides_what_was_asked(fields: dict[str, str], hidden: int, client: TestClient) -> None:
    answer = post(client, photo(), **fields)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["hidden"]) == hidden


def test_a_drawing_hides_its_white_patches(client: TestClient) -> None:
    drawing = Image.new("L", (64, 64), 0)
    drawing.paste(255, (0, 0, 32, 16))
    file = io.BytesIO()
    drawing.save(file, "PNG")
    files = {"image": ("a", photo()), "drawing": ("d", file.getvalue())}
    answer = client.post("/reconstruct", files=files, data={"strategy": "drawing"})
    assert answer.json()["hidden"] == [0, 1]


def test_pictures_in_json_come_as_webp_with_the_same_pixels_and_labels(client: TestClient) -> None:
    pixels, told = {}, {}
    for kind in ("png", "webp"):
        answer = post(client, photo(), seed="3", panels="pasted", picture_format=kind).json()
        head, _, content = answer["images"]["pasted"].partition(",")
        assert head == f"data:image/{kind};base64"
        data = b64decode(content)
        told[kind] = provenance.read(data)
        pixels[kind] = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(pixels["png"], pixels["webp"])
    assert told["png"] == told["webp"] is not None
    problem = problem_of(post(client, photo(), picture_format="webp", headers={"Accept": "image/png"}), 422)
    assert problem["errors"][0]["field"] == "picture_format"


def test_all_panels_and_interpolation_on_request(client: TestClient) -> None:
    answer = post(client, photo(), panels=",".join(PANELS), interpolation="true").json()
    assert tuple(answer["images"]) == PANELS
    assert "interpolation" in answer["metrics"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"ratio": "0"}, "ratio"),
        ({"ratio": "1"}, "ratio"),
        ({"ratio": "-0.5"}, "ratio"),
        ({"ratio": "0.5", "hidden_count": "3"}, "ratio"),
        ({"hidden_count": "0"}, "hidden_count"),
        ({"hidden_count": str(PATCHES)}, "hidden_count"),
        ({"seed": "-1"}, "seed"),
        ({"seed": str(2**32)}, "seed"),
        ({"strategy": "spiral"}, "strategy"),
        ({"strategy": "indices"}, "indices"),
        ({"strategy": "indices", "indices": "[]"}, "indices"),
        ({"strategy": "indices", "indices": "[0, 0]"}, "indices"),
        ({"strategy": "indices", "indices": f"[{PATCHES}]"}, "indices"),
        ({"strategy": "drawing"}, "drawing"),
        ({"indices": "[1]"}, "indices"),
    ],
)
def test_options_out_of_range_name_field_and_remedy(
    fields: dict[str, str], field: str, client: TestClient
) -> None:
    error = problem_of(post(client, photo(), **fields), 422)["errors"][0]
    assert error["field"] == field
    assert error["hint"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"no picture", 415),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
        (encode("PNG")[:60], 422),
        (encode("PNG", (80, 2)), 422),
        (encode("PNG", (4000, 16)), 422),
        (base64.b64decode("UklGRhoAAABXRUJQVlA4TA0AAAAvtyQJCQcQEREAAAA="), 422),
    ],
)
def test_unusable_pictures_are_refused(content: bytes, status: int, client: TestClient) -> None:
    answer = post(client, content)
    assert answer.status_code in (413, 415, 422), (status, answer.text)
    assert problem_of(answer, answer.status_code)["errors"][0]["field"] == "image"


def test_too_many_pixels_are_refused_by_the_header(client: TestClient) -> None:
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    assert problem_of(post(client, file.getvalue()), 413)["type"].endswith("image-pixels")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_common_format_is_read(kind: str, client: TestClient) -> None:
    assert post(client, encode(kind)).status_code == 200


def test_concurrent_pictures_are_answered_as_alone(reconstructor: Reconstructor) -> None:
    app, _ = build_app(reconstructor, max_queue_s=120.0)
    pictures = [photo(number) for number in range(12)]

    async def ask(client: httpx.AsyncClient, number: int) -> dict[str, Any]:
        files = {"image": ("a", pictures[number])}
        data = {"seed": str(number), "ratio": ("0.75", "0.5")[number % 2], "panels": "original,masked"}
        answer = await client.post("/reconstruct", files=files, data=data)
        body: dict[str, Any] = answer.json()
        return {key: body[key] for key in ("seed", "hidden", "images")}

    async def scene() -> None:
        async with app.router.lifespan_context(app), httpx.AsyncClient(**into(app)) as client:
            alone = [await ask(client, number) for number in range(12)]
            assert list(await asyncio.gather(*(ask(client, number) for number in range(12)))) == alone
            assert len({json.dumps(answer["images"]) for answer in alone}) == 12

    asyncio.run(scene())


def test_a_whole_picture_and_several_masks_are_to_be_had_through_the_service(client: TestClient) -> None:
    answer = post(
        client,
        photo(size=(200, 80)),
        fit="whole",
        cover="ensemble",
        samples="3",
        panels="uncertainty",
        seed="1",
    ).json()
    rows, columns = answer["grid"]
    assert columns > rows
    assert (answer["placement"]["original_width"], answer["samples"]) == (200, 3)
    assert list(answer["images"]) == ["uncertainty"]
    again = client.post(
        "/v1/reconstruct?fit=whole&cover=ensemble&samples=3&panel=uncertainty&seed=1",
        content=photo(size=(200, 80)),
        headers={"content-type": "image/png", "accept": "image/png"},
    )
    assert again.headers["x-unmask-seed"] == "1"
    assert again.content == b64decode(answer["images"]["uncertainty"].partition(",")[2])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"fit": "half"}, "fit"),
        ({"crop": "1,2"}, "crop"),
        ({"crop": "0,0,5000"}, "crop"),
        ({"grid": "3x3", "fit": "whole"}, "grid"),
        ({"grid": "5x5"}, "grid"),
        ({"cover": "some"}, "cover"),
        ({"samples": "4"}, "samples"),
        ({"samples": "99", "cover": "ensemble"}, "samples"),
        ({"positions": "none"}, "positions"),
        ({"view": "oracle"}, "view"),
        ({"panels": "uncertainty"}, "panels"),
    ],
)
def test_what_the_model_refuses_is_named(fields: dict[str, Any], field: str, client: TestClient) -> None:
    told = problem_of(post(client, photo(), **fields), 422)
    assert [error["field"] for error in told["errors"]] == [field]


def test_work_that_would_hold_up_everybody_is_refused(reconstructor: Reconstructor) -> None:
    app, _ = build_app(reconstructor, deadline_s=20.0)
    quick = reconstructor.work

    def slow(jobs: Sequence[Any]) -> Iterator[list[Any] | None]:
        time.sleep(1.0)
        yield from quick(jobs)

    with running(app) as client:
        reconstructor.work = slow  # type: ignore[method-assign]
        try:
            assert post(client, photo()).status_code == 200
            told = problem_of(post(client, photo(), cover="ensemble", samples="32"), 422)
        finally:
            del reconstructor.work
    assert told["type"].endswith("too-much-work")


def test_a_large_job_refuses_nobody_and_ends(reconstructor: Reconstructor) -> None:
    app, service = build_app(reconstructor, max_queue_s=2.0)
    quick = reconstructor.work
    answered = 0

    def slow(jobs: Sequence[Any]) -> Iterator[list[Any] | None]:
        if len(jobs[0].masks) > 1:
            for _ in range(3000):  # calls of a large job, until others had their turns between them
                if answered > 3:
                    break
                time.sleep(0.01)
                yield None
        yield from quick(jobs)

    with running(app) as client, ThreadPoolExecutor(1) as pool:
        reconstructor.work = slow  # type: ignore[method-assign]
        service._line.learn(reconstructor.identity, 0.3)  # ten seconds for the large one
        try:
            large = pool.submit(post, client, photo(), cover="ensemble", samples="32")
            while not large.done():
                assert post(client, photo()).status_code == 200
                answered += not large.done()
        finally:
            del reconstructor.work
    assert large.result().status_code == 200
    assert answered > 3, "they had their turns between its calls"


@pytest.mark.parametrize("fields", [{"fit": "whole", "grid": "40x40", "cover": "complete"}])
def test_interpolation_of_much_more_than_usual_is_refused(fields: dict[str, str], client: TestClient) -> None:
    told = problem_of(post(client, photo(), interpolation="true", **fields), 422)
    assert [error["field"] for error in told["errors"]] == ["interpolation"]
    assert post(client, photo(), **fields).status_code == 200


def test_the_least_work_is_tried_however_slow_the_model_was(reconstructor: Reconstructor) -> None:
    app, service = build_app(reconstructor, deadline_s=30.0)
    with running(app) as client:
        service._line.learn(reconstructor.identity, 60.0)
        assert embedding(client, photo())["embedding"], "else nobody would ever learn that it is quick again"


def test_features_count_as_the_two_pictures_that_they_take(reconstructor: Reconstructor) -> None:
    app, service = build_app(reconstructor)
    quick, begun, gate = reconstructor.work, threading.Event(), threading.Event()

    def held(jobs: Sequence[Any]) -> Iterator[list[Any] | None]:
        begun.set()
        assert gate.wait(60)
        yield from quick(jobs)

    with running(app) as client, ThreadPoolExecutor(1) as pool:
        reconstructor.work = held  # type: ignore[method-assign]
        service._line.learn(reconstructor.identity, 1.0)
        try:
            asked = pool.submit(embedding, client, photo())
            assert begun.wait(60)
            estimate_ms = client.get("/v1/queue").json()["estimate_ms"]
        finally:
            gate.set()
            del reconstructor.work
        assert asked.result()["embedding"]
    assert estimate_ms == 2000


def embedding(client: TestClient, image: bytes, **fields: str) -> dict[str, Any]:
    answer = client.post("/v1/embed", files={"image": image}, data=fields)
    assert answer.status_code == 200, answer.text
    return cast(dict[str, Any], answer.json())


def test_features_are_those_of_the_model(client: TestClient, reconstructor: Reconstructor) -> None:
    for kind in ("cls", "mean", "patch"):
        told = embedding(client, photo(), kind=kind)
        expected = reconstructor.embed(photo(), kind)
        assert told["shape"] == list(expected.shape)
        assert np.allclose(np.array(told["embedding"]), expected, atol=1e-6)
        assert (told["model"], told["kind"]) == ("debug", kind)
    problem_of(client.post("/v1/embed", files={"image": photo()}, data={"kind": "all"}), 422)
    problem_of(client.post("/v1/embed", files={"image": b"none"}), 415)


def test_a_picture_that_came_back_tells_the_request_that_makes_it_again(client: TestClient) -> None:
    asked = {
        "fit": "whole",
        "cover": "ensemble",
        "samples": "2",
        "strategy": "block",
        "ratio": "0.5",
        "panel": "pasted",
        "seed": "0",
    }
    for kind, full_size in (("png", "false"), ("webp", "false"), ("jpeg", "false"), ("png", "true")):
        asked["full_size"] = full_size
        made = post(client, photo(size=(200, 80)), headers={"accept": f"image/{kind}"}, **asked)
        told = client.post("/v1/settings", files={"image": made.content}).json()
        assert told["settings"]["panels"] == ["pasted"]
        assert (told["fields"]["model"], told["fields"]["seed"]) == ("debug", 0)
        fields = told["fields"]
        fields |= {"panel": fields.pop("panels"), "full_size": full_size}
        again = post(client, photo(size=(200, 80)), headers={"accept": f"image/{kind}"}, **fields)
        assert again.content == made.content


def test_a_wide_sheet_of_a_whole_picture_still_tells(client: TestClient) -> None:
    made = post(
        client, photo(size=(400, 40)), headers={"accept": "image/png"}, fit="whole", grid="4x40", seed="5"
    )
    with Image.open(io.BytesIO(made.content)) as sheet:
        assert sheet.width > 20 * sheet.height  # no photo may be that wide
    told = client.post("/v1/settings", files={"image": made.content}).json()
    assert (told["fields"]["grid"], told["fields"]["seed"]) == ("4x40", 5)


def test_a_picture_of_a_model_that_is_not_served_names_it(client: TestClient) -> None:
    settings = {provenance.MARK: provenance.FORM, "strategy": "random", "seed": 5, "model": "elsewhere"}
    made = provenance.write(np.zeros((8, 8, 3), np.uint8), settings)
    fields = client.post("/v1/settings", files={"image": made}).json()["fields"]
    assert fields["model"] == "elsewhere"
    assert "no model 'elsewhere'" in problem_of(post(client, **{**fields, "seed": "5"}), 422)["detail"]


def test_a_drawing_comes_back_as_patches(client: TestClient) -> None:
    pixels = Image.new("L", (16, 16))
    pixels.paste(255, (4, 0, 8, 4))
    drawing = io.BytesIO()
    pixels.save(drawing, "PNG")
    files = {"image": photo(), "drawing": drawing.getvalue()}
    made = client.post(
        "/reconstruct", files=files, data={"strategy": "drawing"}, headers={"accept": "image/png"}
    )
    fields = client.post("/v1/settings", files={"image": made.content}).json()["fields"]
    assert (fields["strategy"], fields["indices"]) == ("indices", [1])


def test_a_picture_without_settings_has_none_to_tell(client: TestClient) -> None:
    for image in (photo(), b"no picture"):
        told = problem_of(client.post("/v1/settings", files={"image": image}), 404)
        assert told["type"].endswith("no-settings")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"strategy": "indices", "mask": "zz", "mask_grid": "4x4"}, "settings"),
        ({"strategy": "random", "seed": -5}, "seed"),
        ({"strategy": "\0<script>"}, "strategy"),
        ({"strategy": "random", "ratio": "1.5"}, "ratio"),
        (
            {"strategy": "random", "ratio": "1e-999999999"},
            "ratio",
        ),  # minutes of work, and no other thread runs
        ({"strategy": "random", "panels": ["nope"]}, "panels"),
        ({"strategy": "random", "panels": ["uncertainty"]}, "panels"),
    ],
)
def test_forged_settings_are_refused_as_a_request_with_them_would_be(
    settings: dict[str, Any], field: str, client: TestClient
) -> None:
    forged = provenance.write(np.zeros((8, 8, 3), np.uint8), {provenance.MARK: provenance.FORM} | settings)
    refused = problem_of(client.post("/v1/settings", files={"image": forged}), 422)
    assert [error["field"] for error in refused["errors"]] == [field]
