from starlette.testclient import TestClient

from tests.server.conftest import FakeEngine, build_app, png, post, problem_of, running


def counters(client: TestClient) -> dict[str, float]:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_every_stage_is_timed_by_surface(engine: FakeEngine) -> None:
    app, _ = build_app(engine)
    with running(app) as client:
        post(client)
        post(client, headers={"sec-fetch-site": "same-origin"})
        found = counters(client)
    for who in ("api", "page"):
        for stage in ("decode", "queue_wait", "encode"):
            assert found[f'unmask_{stage}_seconds_count{{surface="{who}"}}'] == 1
        labels = f'method="POST",route="/reconstruct",status="200",surface="{who}"'
        assert found[f"unmask_requests_total{{{labels}}}"] == 1
        assert found[f'unmask_request_seconds_count{{route="/reconstruct",surface="{who}"}}'] == 1
    assert found["unmask_batch_size_sum"] == found["unmask_infer_seconds_count"] == 2
    assert found["unmask_admitted"] == 0


def test_refusals_are_counted_by_reason_and_never_by_path(engine: FakeEngine) -> None:
    app, service = build_app(engine)
    with running(app) as client:
        problem_of(post(client, seed="x"), 422)
        problem_of(client.get("/v1/samples/some-secret"), 404)
        for path in ("/some-secret", "/v1/some-secret"):
            problem_of(client.get(path), 404)
        client.request("SECRET", "/reconstruct")
        service.drain()
        problem_of(post(client), 503)
        found = counters(client)
    for reason, route in (
        ("invalid-fields", "/reconstruct"),
        ("shutting-down", "/reconstruct"),
        ("sample-unknown", "/v1/samples/{name}"),
    ):
        assert found[f'unmask_rejects_total{{reason="{reason}",route="{route}",surface="api"}}'] == 1
    assert found['unmask_rejects_total{reason="not-found",route="none",surface="api"}'] == 2
    assert not any("secret" in name.lower() for name in found)


def test_entries_of_a_batch_that_are_refused_are_counted(engine: FakeEngine) -> None:
    engine.fails_on = png()
    app, _ = build_app(engine)
    with running(app) as client:
        files = [("images", ("a", png())), ("images", ("b", png((1, 2, 3))))]
        answer = client.post("/v1/reconstruct/batch", files=files)
        assert answer.status_code == 200
        found = counters(client)
    assert found['unmask_rejects_total{reason="internal",route="/v1/reconstruct/batch",surface="api"}'] == 1


def test_the_counters_can_be_turned_off(engine: FakeEngine) -> None:
    app, _ = build_app(engine, metrics=False)
    with running(app) as client:
        problem_of(client.get("/metrics"), 404)
