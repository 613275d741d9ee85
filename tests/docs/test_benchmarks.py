"""The benchmarks run: their figures mean nothing here, and on a busy machine never do."""

import sys
from collections.abc import Callable

import pytest
import torch

from tests.bench import bench_forward, bench_service, bench_train


@pytest.mark.parametrize(
    ("main", "arguments", "row"),
    [
        (bench_forward.main, [], "| debug, 1 | OpenVINO float32 |"),
        (bench_service.main, [], "| Unmask |"),
        (bench_train.main, ["--data", "model/samples"], "| debug, batch 4: ours |"),
    ],
    ids=["forward", "service", "train"],
)
def test_a_benchmark_runs_from_its_first_to_its_last_row(
    main: Callable[[], None],
    arguments: list[str],
    row: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--tiny", *arguments])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # other tests share this process

    main()

    assert row in capsys.readouterr().out
