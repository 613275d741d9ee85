"""Many reconstructions in one request, and the facts about service and models beside it."""

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.responses import Response
from starlette.testclient import TestClient

from model import Reconstructor, __version__
from server.schemas import BatchFields
from server.service import Service
from tests.server.conftest import FakeEngine, build_app, into, photo, png, post, problem_of, running

PATH = "/v1/reconstruct/batch"


@pytest.fixture(scope="module")
def client(reconstructor: Reconstructor) -> Iterator[TestClient]:
    app, _ = build_app(reconstructor, batch_items=12)
    with running(app) as client:
        yield client


def as_json(client: TestClient, accept: str = "application/json", **fields: Any) -> Any:
    images = fields.pop("images", [photo()])
    body = {"images": [base64.b64encode(image).decode() for image in images], **fields}
    return client.post(PATH, json=body, headers={"accept": accept})


def items_of(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    assert [item["index"] for item in items] == list(range(len(items)))
    return items


def test_every_combination_is_answered_in_order_as_alone(
    client: TestClient, reconstructor: Reconstructor
) -> None:
    answer = as_json(client, strategies=["random", "block"], ratios=[0.5, 0.75], seeds=[1, 2, 3])
    items = items_of(answer)
    asked = [tuple(item["asked"].values()) for item in items]
    assert asked == [(s, r, n) for s in ("random", "block") for r in (0.5, 0.75) for n in (1, 2, 3)]
    assert answer.json()["model_digest"] == reconstructor.digest
    for item in items:
        fields = {key: str(value) for key, value in item["asked"].items()}
        alone = post(client, photo(), **fields).json()
        for key in ("hidden", "mask_hash", "images", "metrics", "seed", "strategy", "ratio"):
            assert item["result"][key] == alone[key]


@pytest.mark.parametrize("fields", [{}, {"cover": "complete"}, {"cover": "ensemble"}])
def test_what_a_batch_leaves_out_is_what_a_single_request_leaves_out(
    client: TestClient, fields: dict[str, str]
) -> None:
    (item,) = items_of(as_json(client, seeds=[7], **fields))
    assert item["asked"] == {"strategy": "random", "ratio": None, "seed": 7}
    alone = post(client, photo(), seed="7", **fields).json()
    for key in ("hidden", "images", "metrics", "ratio"):
        assert item["result"][key] == alone[key]


def pixels_of(address: str) -> bytes:
    """The picture alone: files of the same picture are labelled with different settings."""
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).tobytes()


def test_several_pictures_come_in_a_form_with_lists_as_text(client: TestClient) -> None:
    files = [("images", ("a", photo(number))) for number in range(3)]
    answer = client.post(PATH, files=files, data={"ratios": "0.5, 0.75", "seeds": "4", "panels": "original"})
    items = items_of(answer)
    assert [item["image"] for item in items] == [0, 0, 1, 1, 2, 2]
    assert len({pixels_of(item["result"]["images"]["original"]) for item in items}) == 3
    one = client.post(PATH, content=photo(2), params={"seeds": "4"}, headers={"content-type": "image/png"})
    assert items_of(one)[0]["result"]["hidden"] == items[5]["result"]["hidden"]


def test_lines_carry_the_same_as_the_whole(client: TestClient) -> None:
    lines = as_json(client, "application/x-ndjson", seeds=[1, 2, 3])
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert lines.headers["x-unmask-items"] == "3"
    entries = [json.loads(line) for line in lines.text.splitlines()]
    for entry, item in zip(entries, items_of(as_json(client, seeds=[1, 2, 3])), strict=True):
        assert entry["result"]["images"] == item["result"]["images"]
    problem_of(as_json(client, "image/png"), 406)


def test_a_bad_entry_leaves_the_others_alone(client: TestClient) -> None:
    images = [photo(), photo(size=(40, 40)), b"no picture"]
    items = items_of(as_json(client, images=images, crop="0,0,80"))
    assert ["result" in item for item in items] == [True, False, False]
    assert items[1]["problem"]["errors"][0]["field"] == "crop"
    assert items[2]["problem"]["status"] == 415


def test_a_bad_network_call_fails_one_entry_only(engine: FakeEngine) -> None:
    engine.fails_on = png()
    app, _ = build_app(engine)
    with running(app) as client:
        items = items_of(as_json(client, images=[png(), png((1, 2, 3))]))
    assert items[0]["problem"]["status"] == 500
    assert "network broke" not in json.dumps(items)
    assert items[1]["result"]["seed"] == 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"seeds": list(range(13))}, "images"),
        ({"seeds": "1," * 20}, "seeds"),
        ({"seeds": ["x"]}, "seeds"),
        ({"seeds": []}, "seeds"),
        ({"ratios": "0.5,,1"}, "ratios"),
        ({"strategies": "drawing"}, "strategies"),
        ({"strategies": "a" * 10_000}, "strategies"),
        ({"ratios": ["0.5", "2"]}, "ratio"),
        ({"seeds": "1,-2"}, "seed"),
        ({"seeds": [2**32]}, "seed"),
        ({"seed": 1}, "seed"),
        ({"images": []}, "images"),
        ({"images": [png()] * 13}, "images"),
        ({"ratios": [0.5] * 2000}, "ratios"),
    ],
)
def test_wrong_lists_are_named(fields: dict[str, Any], named: str, client: TestClient) -> None:
    assert problem_of(as_json(client, **fields), 422)["errors"][0]["field"] == named


def test_a_batch_of_one_picture_is_a_list_too(reconstructor: Reconstructor) -> None:
    app, _ = build_app(reconstructor, batch_items=1)
    with running(app) as one:
        assert ["result" in item for item in items_of(as_json(one, images=[photo()]))] == [True]
        for refused in (
            as_json(one, images=[photo(), photo()]),
            one.post(PATH, files=[("images", photo()), ("images", photo())]),
        ):
            assert (
                problem_of(refused, 422)["errors"][0]["message"]
                == "'images' holds 2 pictures; the limit is 1."
            )


def test_what_a_batch_asks_for_is_counted_not_listed(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchFields, "variants", lambda _: pytest.fail("all of them are listed"))
    lists: dict[str, Any] = {"strategies": ["random"] * 1024, "ratios": ["0.5"] * 1024, "seeds": [1] * 1024}
    error = problem_of(as_json(client, **lists), 422)["errors"][0]
    assert (error["field"], "1073741824" in error["message"]) == ("images", True)


async def queued(service: Service, job: bytes) -> None:
    """Wait until a job is decoded and stands in the line."""
    while not any(entry.job == job for entry in service._worker._queue):  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)


def test_a_batch_leaves_room_for_others(engine: FakeEngine) -> None:
    engine.gate.clear()
    app, service = build_app(engine, max_batch=2, max_waiting=3)
    batched, single = png(), png((9, 9, 9))

    async def scene() -> None:
        async with app.router.lifespan_context(app), httpx.AsyncClient(**into(app)) as c:
            data = {"seeds": ",".join(map(str, range(10)))}
            many = [
                asyncio.create_task(c.post(PATH, files={"images": ("a", batched)}, data=data))
                for _ in range(2)
            ]
            await asyncio.to_thread(engine.entered.wait, 10)
            await asyncio.sleep(0.1)
            alone = asyncio.create_task(c.post("/reconstruct", files={"image": ("a", single)}))
            await queued(service, single)
            engine.gate.set()
            assert (await alone).status_code == 200
            assert [len(items_of(answer)) for answer in await asyncio.gather(*many)] == [10, 10]
            assert service.metrics.registry.get_sample_value("unmask_admitted") == 0

    asyncio.run(scene())
    position = [job for batch in engine.batches for job in batch].index(single)
    assert position <= 2 * 2, "it waited for what was in work, not for twenty"


def test_what_one_json_answer_has_no_room_for_is_refused_and_lines_have_room(engine: FakeEngine) -> None:
    app, _ = build_app(engine, batch_bytes=6000, max_batch=1)
    with running(app) as client:
        data, files = {"seeds": ",".join(map(str, range(12)))}, {"images": ("a", png())}
        answer = client.post(PATH, files=files, data=data)
        computed = len(engine.batches)
        items = items_of(answer)
        lines = client.post(PATH, files=files, data=data, headers={"accept": "application/x-ndjson"})
    done = ["result" in item for item in items]
    assert done == sorted(done, reverse=True)
    assert 0 < sum(done) < 12
    assert len(answer.content) < 6000 + 12 * 1000
    assert computed <= sum(done) + 2, "what is refused is not computed"
    assert items[-1]["problem"]["status"] == 413
    assert "application/x-ndjson" in items[-1]["problem"]["detail"]
    assert [item["asked"]["seed"] for item in items] == list(range(12))
    assert ["result" in json.loads(line) for line in lines.text.splitlines()] == [True] * 12


def test_a_heavy_entry_takes_all_places_and_single_requests_are_let_in(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    heavy, single = png(), png((9, 9, 9))
    monkeypatch.setattr("server.service.count_passes", lambda job, _: 128 if job == heavy else 1)
    app, service = build_app(engine, max_batch=4, max_queue_s=2.0)
    service._line.learn(engine.identity, 0.1)  # 128 passes are then 13 s, far above `max_queue_s`
    engine.gate.clear()

    async def scene() -> None:
        async with app.router.lifespan_context(app), httpx.AsyncClient(**into(app)) as c:
            data = {"seeds": "1,2,3,4"}
            many = [
                asyncio.create_task(c.post(PATH, files={"images": ("a", heavy)}, data=data)) for _ in range(2)
            ]
            await asyncio.to_thread(engine.entered.wait, 10)
            await asyncio.sleep(0.1)
            assert service.metrics.registry.get_sample_value("unmask_admitted") == 1, "heavy ones go alone"
            alone = asyncio.create_task(c.post("/reconstruct", files={"image": ("a", single)}))
            await queued(service, single)
            engine.gate.set()
            assert (await alone).status_code == 200
            assert [len(items_of(answer)) for answer in await asyncio.gather(*many)] == [4, 4]

    asyncio.run(scene())
    position = [job for batch in engine.batches for job in batch].index(single)
    assert position == 1, "it waited for the call that ran"


def test_an_entry_that_could_not_end_in_time_is_refused_and_not_computed(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    heavy = png()
    monkeypatch.setattr("server.service.count_passes", lambda job, _: 128 if job == heavy else 1)
    app, service = build_app(engine, deadline_s=30.0)
    service._line.learn(engine.identity, 1.0)
    with running(app) as client:
        refused, done = items_of(as_json(client, images=[heavy, png((9, 9, 9))]))
    assert refused["problem"]["type"].endswith("too-much-work")
    assert done["result"]["seed"] == 1
    assert heavy not in [job for batch in engine.batches for job in batch]


def test_batches_are_refused_when_enough_of_them_are_in_work(engine: FakeEngine) -> None:
    engine.gate.clear()
    app, service = build_app(engine)

    async def scene() -> None:
        async with app.router.lifespan_context(app), httpx.AsyncClient(**into(app)) as c:

            async def ask() -> httpx.Response:
                return await c.post(
                    PATH, files={"images": ("a", png())}, headers={"accept": "application/x-ndjson"}
                )

            held = [asyncio.create_task(ask()) for _ in range(4)]
            while service._large < 4:
                await asyncio.sleep(0.01)
            full_size: dict[str, Any] = {"files": {"image": ("a", png())}, "headers": {"accept": "image/png"}}
            for refused in (await ask(), await c.post("/reconstruct?full_size=true", **full_size)):
                problem_of(refused, 503)
                assert refused.headers["retry-after"]
            engine.gate.set()
            assert [answer.status_code for answer in await asyncio.gather(*held)] == [200] * 4
            assert (await ask()).status_code == 200

    asyncio.run(scene())


def test_a_large_answer_keeps_its_place_until_it_was_sent(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, service = build_app(engine)
    held, send = [], Response.__call__

    async def noted(answer: Response, *parts: Any) -> None:
        held.append(service._large)
        await send(answer, *parts)

    monkeypatch.setattr(Response, "__call__", noted)
    with running(app) as client:
        assert client.post(PATH, files={"images": ("a", png())}).status_code == 200
        assert post(client, full_size="true", headers={"accept": "image/png"}).status_code == 200
    assert (held, service._large) == ([1, 1], 0)


def test_a_stopping_service_gives_up_what_has_not_begun(engine: FakeEngine) -> None:
    engine.gate.clear()
    app, service = build_app(engine, max_batch=1)

    async def scene() -> None:
        async with app.router.lifespan_context(app), httpx.AsyncClient(**into(app)) as c:
            asked = asyncio.create_task(c.post(PATH, files={"images": ("a", png())}, data={"seeds": "1,2,3"}))
            await asyncio.to_thread(engine.entered.wait, 10)
            service.drain()
            engine.gate.set()
            items = items_of(await asked)
            assert ["result" in item for item in items] == [True, False, False]
            assert items[2]["problem"]["type"].endswith("shutting-down")
            problem_of(await c.post(PATH, files={"images": ("a", png())}), 503)

    asyncio.run(scene())


def test_models_and_service_describe_themselves(client: TestClient, reconstructor: Reconstructor) -> None:
    described = json.loads(json.dumps(reconstructor.describe()))
    assert client.get("/v1/models").json() == {"models": [described | {"default": True, "loaded": True}]}
    assert client.get("/v1/model").json() == described
    assert "debug" in problem_of(client.get("/v1/models/nope"), 404)["detail"]
    info = client.get("/v1/info").json()
    assert (info["models"], info["version"], info["limits"]["batch_items"]) == (["debug"], __version__, 12)
    assert {"image/webp", "application/json"} <= set(info["answers"])


def test_the_batch_is_described(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"][PATH]["post"]
    content = operation["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "image/*", "application/json"}
    seeds = content["application/json"]["schema"]["properties"]["seeds"]
    assert [form["type"] for form in seeds["anyOf"]] == ["array", "null"]
    assert content["multipart/form-data"]["schema"]["required"] == ["images"]
    example = content["application/json"]["examples"]["ratios"]["value"]
    assert ["result" in item for item in items_of(client.post(PATH, json=example))] == [True] * 4
