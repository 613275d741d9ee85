"""Runs that end in other ways than planned: killed, stopped, out of disk; and the ways to make a run."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from model.checkpoints import store
from model.checkpoints.files import write_json
from model.checkpoints.report import inspect
from model.errors import CheckpointError, DataError, RecipeError
from model.network import MAE
from model.pretrain import launch, loop, resume
from model.pretrain.data import Photos
from model.pretrain.launch import pretrain
from model.pretrain.loop import Objective, build_optimisers, learning_rate, mask_orders, run
from model.pretrain.muon import Muon, orthogonalise
from model.pretrain.pace import Pace
from model.pretrain.recipe import load_recipe
from model.pretrain.resume import Training
from model.pretrain.samples import Batch
from model.pretrain.watch import Progress
from model.pretrain.world import World
from model.reconstruct import load
from tests.training import equal, log, processes, run_until, toy, weights, write_recipe

#: Colours so far apart that the first gradients overflow in float16, until the loss is scaled by less.
OVERFLOWING: dict[str, object] = {"pixel_mean": [0.5, 0.5, 0.5], "pixel_std": [1e-4, 1e-4, 1e-4]}

# --- states on disk ---------------------------------------------------------------------------------------


def test_the_newest_states_and_the_best_one_stay(folder: Path, tmp_path: Path) -> None:
    training = Training(toy(keep=2), network := MAE(toy().config), build_optimisers(network, toy()), "")
    for training.step, loss in enumerate([0.9, 0.5, 0.7, 0.6, 0.8], 1):
        resume.save(tmp_path, training, loss)
    assert sorted(path.name for path in tmp_path.glob("state-*.pt")) == [
        f"state-{step:07d}.pt" for step in (2, 4, 5)
    ]
    assert (tmp_path / "BEST").read_text() == "state-0000002.pt"
    assert resume.latest_step(tmp_path) == 5


def test_the_losses_of_a_few_steps_before_a_stop_do_not_make_a_state_the_best(
    folder: Path, tmp_path: Path
) -> None:
    pretrain(toy(steps=8, checkpoint_every=4), [folder], tmp_path, device="cpu")
    state = torch.load(tmp_path / "state-0000008.pt", weights_only=True)
    torch.save(state | {"best": 1e9}, tmp_path / "state-0000008.pt")  # every loss is lower
    best = (tmp_path / "BEST").read_text()
    pretrain(toy(steps=9, checkpoint_every=4), [folder], tmp_path, device="cpu", resumed=True)
    assert (tmp_path / "LATEST").read_text() == "state-0000009.pt"
    assert (tmp_path / "BEST").read_text() == best
    pretrain(toy(steps=12, checkpoint_every=4), [folder], tmp_path, device="cpu", resumed=True)
    assert (tmp_path / "BEST").read_text() == "state-0000012.pt", "three steps of four are enough"


def test_a_full_disk_is_said_and_leaves_the_state_before(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / f"state-0000004.pt.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="No space left") as caught:
        pretrain(toy(), [folder], out, device="cpu")
    assert "--resume" in caught.value.hint
    assert (out / "LATEST").read_text() == "state-0000002.pt"
    assert sorted(path.name for path in out.glob("state*")) == ["state-0000002.pt"]
    resumed = pretrain(toy(), [folder], out, resumed=True, device="cpu")
    assert equal(resumed, pretrain(toy(), [folder], tmp_path / "whole", device="cpu"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_log_that_cannot_be_written_is_said(folder: Path, tmp_path: Path) -> None:
    pretrain(toy(), [folder], tmp_path / "run", device="cpu")
    (tmp_path / "run/LATEST").write_text("state-0000004.pt")
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be written \(No space left"):
        pretrain(toy(), [folder], tmp_path / "run", resumed=True, device="cpu")


def test_a_file_in_the_place_of_a_folder_is_said_of_whatever_is_written_there(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match=r"taken/plan\.json cannot be written \(File exists\)"):
        write_json(tmp_path / "taken" / "plan.json", {})


def test_a_file_in_the_place_of_the_runs_folder_is_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match=r"run cannot be made or written to \(File exists\)"):
        pretrain(toy(), [folder], tmp_path / "run", device="cpu")


def test_half_of_what_torchrun_tells_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="only WORLD_SIZE is present"):
        pretrain(toy(), [folder], tmp_path / "run", device="cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert pretrain(toy(steps=1), [folder], tmp_path / "run", device="cpu")


@pytest.mark.parametrize("damage", [lambda whole: whole[:5000], lambda whole: b"", lambda whole: b"garbage"])
def test_a_damaged_state_names_the_way_back(
    folder: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    whole = pretrain(toy(), [folder], tmp_path / "run", device="cpu")
    state = tmp_path / "run/state-0000006.pt"
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        pretrain(toy(), [folder], tmp_path / "run", resumed=True, device="cpu")
    assert "LATEST" in caught.value.hint
    (tmp_path / "run/LATEST").write_text("state-0000004.pt\n")  # as an editor would
    assert equal(whole, pretrain(toy(), [folder], tmp_path / "run", resumed=True, device="cpu"))


def test_a_folder_that_holds_a_run_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    pretrain(toy(steps=2), [folder], tmp_path / "run", device="cpu")
    with pytest.raises(CheckpointError, match="holds the states of a run"):
        pretrain(toy(steps=2), [folder], tmp_path / "run", device="cpu")


def test_a_weight_file_that_is_there_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "run/toy.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"years of work")
    with pytest.raises(CheckpointError, match=r"toy\.safetensors is there already") as caught:
        pretrain(toy(steps=1), [folder], tmp_path / "run", device="cpu")
    assert "--name" in caught.value.hint
    assert weights.read_bytes() == b"years of work"


@pytest.mark.parametrize("out", ["run", "."])
@pytest.mark.parametrize("pattern", ["{}", "{}*"])
def test_a_run_does_not_lie_in_the_folder_that_it_learns_from(
    folder: Path, out: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(CheckpointError, match="whose pictures are learned from"):
        pretrain(toy(steps=1), [pattern.format(folder)], Path(out), device="cpu")


def test_a_run_goes_on_when_its_folder_of_photos_is_named_otherwise(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(toy(steps=1), [folder], tmp_path / "run", device="cpu")
    monkeypatch.chdir(folder)
    assert pretrain(toy(steps=2), ["."], tmp_path / "run", device="cpu", resumed=True)


def test_a_run_does_not_go_on_to_fewer_steps_than_it_has_made(folder: Path, tmp_path: Path) -> None:
    weights = pretrain(toy(), [folder], tmp_path, device="cpu")
    assert weights is not None
    before = weights.read_bytes()
    with pytest.raises(CheckpointError, match="has made 6 steps, and 4 are asked for") as caught:
        pretrain(toy(steps=4), [folder], tmp_path, resumed=True, device="cpu")
    assert caught.value.field == "steps"
    assert weights.read_bytes() == before


def test_a_run_that_may_begin_or_go_on_does_either(folder: Path, tmp_path: Path) -> None:
    whole = pretrain(toy(), [folder], tmp_path / "whole", device="cpu", resumed=None)
    run_until(toy(), folder, tmp_path / "parts", 5)
    assert equal(whole, pretrain(toy(), [folder], tmp_path / "parts", device="cpu", resumed=None))


def test_states_from_before_averages_and_logs_were_kept_can_be_resumed(folder: Path, tmp_path: Path) -> None:
    recipe = toy(precision="fp16")  # whose loss scale is not in them either
    whole = pretrain(recipe, [folder], tmp_path / "whole", device="cpu")
    run_until(recipe, folder, tmp_path / "old", 5)
    path = tmp_path / "old/state-0000004.pt"
    state = torch.load(path, weights_only=True)
    new_keys = ("minutes", "accumulate", "ema", "keep", "data_path", "max_broken_share")
    state["recipe"] = {key: value for key, value in state["recipe"].items() if key not in new_keys}
    torch.save({key: state[key] for key in ("step", "network", "optimisers", "recipe")}, path)
    assert equal(whole, pretrain(recipe, [folder], tmp_path / "old", resumed=True, device="cpu"))


def test_a_state_of_before_positions_were_kept_says_that_they_may_be_lost(
    folder: Path, tmp_path: Path, debug_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(toy(), [folder], tmp_path / "run", init=debug_file, device="cpu")
    path = tmp_path / "run/state-0000006.pt"
    assert not any("missing here" in note for note in inspect(path).notes)
    state = torch.load(path, weights_only=True)
    del state["positions"]
    torch.save(state, path)
    assert any("began from debug" in note and "missing here" in note for note in inspect(path).notes)
    store.read(path)
    pretrain(toy(steps=7), [folder], tmp_path / "run", resumed=True, device="cpu")
    assert sum("missing here" in line for line in caplog.messages) == 2


@pytest.mark.parametrize("changes", [{}, {"precision": "fp16", "network": OVERFLOWING}])
def test_a_resumed_run_ends_and_logs_as_an_unbroken_one(
    changes: dict[str, object], folder: Path, tmp_path: Path
) -> None:
    recipe = toy(**{"steps": 11, "log_every": 3, "checkpoint_every": 4} | changes)
    whole = pretrain(recipe, [folder], tmp_path / "whole", device="cpu")
    out = tmp_path / "parts"
    out.mkdir()
    run_until(recipe, folder, out, 6)
    assert resume.latest_step(out) == 4
    # What a killed process may leave: a line of a later step, and one cut off.
    lines = (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    (out / "metrics.jsonl").write_text("\n".join([*lines[:3], lines[3][:20]]))
    assert equal(whole, pretrain(recipe, [folder], out, resumed=True, device="cpu"))
    assert log(out) == log(tmp_path / "whole")
    assert [line["step"] for line in log(out)] == [3, 4, 6, 8, 9, 11]


def test_the_speed_after_a_resume_counts_the_steps_of_its_own_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace(299, 0.0, None)
    now[0] = 2.0
    assert pace.since_report(300) == 0.5
    pace.reported(300)
    now[0] = 4.0
    assert pace.since_report(310) == 5


@pytest.mark.parametrize("changes", [{"lr": 1e38, "checkpoint_every": 3}, {"lr": 3e38, "weight_decay": 10.0}])
def test_a_state_is_never_written_from_weights_that_are_lost(
    folder: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    recipe = toy(**{"steps": 200, "optimiser": "adamw", "log_every": 100, "checkpoint_every": 1} | changes)
    with pytest.raises(DataError, match="loss"):
        pretrain(recipe, [folder], tmp_path / "run", device="cpu")
    assert list((tmp_path / "run").glob("not-finite-*.json"))
    assert not (tmp_path / "run/toy.safetensors").exists()
    for path in (tmp_path / "run").glob("state-*.pt"):
        assert all(value.isfinite().all() for value in torch.load(path)["network"].values())


@pytest.mark.parametrize(
    ("network", "gradient", "said"),
    [({"pixel_std": [1e-9, 1e-9, 1e-9]}, 1.0, "loss is nan"), ({}, float("inf"), "left float16's range")],
)
def test_a_run_that_leaves_the_range_of_float16_stops_and_names_the_way_on(
    network: dict[str, object], gradient: float, said: str, folder: Path, tmp_path: Path
) -> None:
    def begin(step: int, network: MAE, loss: float | None) -> None:
        network.mask_token.register_hook(lambda grad: grad * gradient)  # type: ignore[no-untyped-call]

    recipe = toy(precision="fp16", network=network, steps=100, log_every=20, checkpoint_every=100)
    with pytest.raises(DataError, match=said) as caught:
        run(recipe, Photos.open([folder]), tmp_path, device=torch.device("cpu"), begin=begin)
    assert 'precision = "fp32"' in caught.value.hint


# --- ways to train ----------------------------------------------------------------------------------------


def test_minutes_become_steps_that_a_resumed_run_keeps(folder: Path, tmp_path: Path) -> None:
    recipe = toy(steps=0, minutes=30.0, warmup_steps=20, log_every=5, checkpoint_every=20)
    steps: dict[int, list[int]] = {70: [], 75: []}
    for crash_at, resumed in ((70, False), (75, True)):

        def crash(progress: Progress, network: MAE, at: int = crash_at) -> None:
            steps[at].append(progress.steps)
            if progress.step == at:
                raise RuntimeError("power cut")

        with pytest.raises(RuntimeError, match="power cut"):
            run(
                recipe,
                Photos.open([folder]),
                tmp_path,
                device=torch.device("cpu"),
                resumed=resumed,
                report=crash,
            )
    assert steps[70][:9] == [0] * 9  # unknown up to step 45
    assert steps[70][9] > 1000
    assert set(steps[70][9:]) == set(steps[75])


def test_minutes_other_than_a_run_was_planned_for_plan_it_anew_from_where_it_stands(
    folder: Path, tmp_path: Path
) -> None:
    def newest() -> Path:
        return tmp_path / (tmp_path / "LATEST").read_text()

    pretrain(toy(steps=4), [folder], tmp_path, device="cpu")
    pretrain(toy(steps=0, minutes=0.02), [folder], tmp_path, device="cpu", resumed=True)
    first = resume.latest_step(tmp_path)
    assert first > 4, "a run of steps that is given minutes"
    state = torch.load(newest(), weights_only=True)
    state["recipe"]["steps"] = 10**6  # a plan that no machine is fast enough for
    torch.save(state, newest())
    for minutes, kept in ((0.02, True), (0.03, False)):
        pretrain(toy(steps=0, minutes=minutes), [folder], tmp_path, device="cpu", resumed=True)
        assert first < (first := resume.latest_step(tmp_path))
        assert (torch.load(newest(), weights_only=True)["recipe"]["steps"] == 10**6) == kept


def test_a_planned_run_that_goes_on_stops_when_its_minutes_are_over_again(
    folder: Path, tmp_path: Path
) -> None:
    pretrain(toy(steps=0, minutes=1e-4), [folder], tmp_path, device="cpu")
    path = tmp_path / "state-0000001.pt"
    state = torch.load(path, weights_only=True)
    state["recipe"]["steps"] = 10**6  # as if it had been fast
    torch.save(state, path)
    pretrain(toy(steps=0, minutes=1e-4), [folder], tmp_path, device="cpu", resumed=True)
    assert resume.latest_step(tmp_path) == 2


def test_minutes_that_are_over_end_the_run_before_its_speed_is_known(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = pretrain(toy(steps=0, minutes=1e-4), [folder], tmp_path / "run", device="cpu")
    assert load(left, "cpu").describe()["steps"] == 1
    assert (tmp_path / "run/LATEST").read_text() == "state-0000001.pt"
    assert "Stopped after step 1; --resume goes on from there." in capsys.readouterr().err


def test_until_the_end_is_known_the_rate_stays_up() -> None:
    recipe = toy(steps=0, minutes=1.0, warmup_steps=10, schedule="cosine")
    assert [learning_rate(recipe, step) for step in (0, 5, 10, 49)] == [0, 0.5, 1, 1]


def test_parts_of_a_batch_add_up_to_the_batch(folder: Path, tmp_path: Path) -> None:
    for parts in (1, 2, 4):
        recipe = toy(accumulate=parts, optimiser="adamw", clip_norm=1.0)
        pretrain(recipe, [folder], tmp_path / str(parts), device="cpu")
    for parts in (2, 4):
        for ours, whole in zip(log(tmp_path / str(parts)), log(tmp_path / "1"), strict=True):
            assert ours["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_a_run_in_float16_learns_as_one_in_float32_does(folder: Path, tmp_path: Path) -> None:
    moments = []
    for precision in ("fp32", "fp16"):
        recipe = toy(precision=precision, optimiser="adamw", accumulate=2, clip_norm=0.5)
        pretrain(recipe, [folder], tmp_path / precision, device="cpu")
        state = torch.load(tmp_path / precision / "state-0000006.pt", weights_only=True)
        moments.append([of["exp_avg"] for of in state["optimisers"][0]["state"].values()])
    for exact, half in zip(
        *moments, strict=True
    ):  # gradients of the size that they have, clipped as they are
        assert 0 < float((half - exact).norm() / exact.norm()) < 0.05
    for one, other in zip(log(tmp_path / "fp16"), log(tmp_path / "fp32"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


@pytest.mark.parametrize("name", ["mask_token", "blocks.0.attn.qkv.weight"])  # AdamW's, Muon's
def test_a_step_whose_gradients_overflow_moves_nothing_and_halves_the_scale(
    name: str, debug_network: MAE
) -> None:
    recipe = toy(precision="fp16", ema=0.9, clip_norm=1.0, accumulate=2)
    training = Training(
        recipe,
        debug_network,
        build_optimisers(debug_network, recipe),
        "",
        average=copy.deepcopy(debug_network),
    )
    objective = Objective(debug_network, recipe.arithmetic(torch.device("cpu")))
    batch = Batch(torch.zeros(4, 3, 64, 64, dtype=torch.uint8), torch.arange(16).expand(4, -1) >= 4)
    moving = [*debug_network.parameters(), *cast("MAE", training.average).parameters()]
    for scale, moves in ((65536, True), (32768, False), (16384, False)):
        before = [parameter.detach().clone() for parameter in moving]
        if training.step == 1:
            debug_network.get_parameter(name).register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[no-untyped-call]
        loop.step(objective, batch, training)
        training.step += 1
        assert training.scaler.get_scale() == scale
        stayed = [torch.equal(old, new) for old, new in zip(before, moving, strict=True)]
        assert not any(stayed) if moves else all(stayed)


def test_processes_that_would_compute_in_different_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    class Mixed(World):
        """Another process says of itself what this one does not."""

        def any(self, flag: bool) -> bool:
            return True

    with pytest.raises(RecipeError, match="float16 in some processes") as caught:
        run(toy(), Photos.open([folder]), tmp_path, device=torch.device("cpu"), world=Mixed(0, 2))
    assert caught.value.field == "precision"


def test_an_average_follows_the_weights_and_is_what_the_run_leaves(folder: Path, tmp_path: Path) -> None:
    recipe = toy(ema=0.9)
    plain = pretrain(replace(recipe, ema=None), [folder], tmp_path / "plain", device="cpu")
    whole = pretrain(recipe, [folder], tmp_path / "whole", device="cpu")
    assert not equal(plain, whole)
    state = torch.load(tmp_path / "whole/state-0000006.pt", weights_only=True)
    ours, name = weights(whole), "blocks.0.mlp.fc1.weight"
    assert torch.equal(ours[name], state["average"][name])
    assert torch.equal(weights(plain)[name], state["network"][name])
    run_until(recipe, folder, tmp_path / "parts", 5)
    assert equal(whole, pretrain(recipe, [folder], tmp_path / "parts", resumed=True, device="cpu"))


def test_a_stack_of_matrices_moves_as_each_alone() -> None:
    stack = torch.randn(5, 24, 40, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        orthogonalise(stack, 5), torch.stack([orthogonalise(m, 5) for m in stack]), atol=1e-5
    )
    alone, together = ([torch.nn.Parameter(m.clone()) for m in stack] for _ in range(2))
    for parameters, stacked in ((alone, False), (together, True)):
        for n, parameter in enumerate(parameters):
            parameter.grad = stack[n].flip(0)
        optimiser = Muon(parameters, lr=0.02, dtype=torch.bfloat16 if stacked else torch.float32)
        if stacked:  # what a GPU does, in bfloat16
            with torch.no_grad():
                optimiser._move(parameters, optimiser.param_groups[0])
        else:
            optimiser.step()
    for n in range(5):
        moved = alone[n] - stack[n]
        assert float((together[n] - alone[n]).detach().norm() / moved.detach().norm()) < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_network_and_loss_compile_as_one_graph(debug_network: MAE, dtype: torch.dtype) -> None:
    objective = Objective(debug_network, dtype)
    images = torch.randint(
        0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    hidden = torch.arange(16).expand(4, -1) >= 4
    arguments = (images, *mask_orders(hidden, 4), hidden)
    # Without code generation, which takes a minute here; a break in the graph is an error either way.
    compiled = torch.compile(objective, fullgraph=True, dynamic=False, backend="eager")
    assert torch.equal(compiled(*arguments), objective(*arguments))


def test_a_step_compiles_once_for_any_number_of_visible_patches(debug_network: MAE) -> None:
    torch._dynamo.reset()  # sizes that an earlier test has met are free already
    compiled = CompileCounter()
    recipe = toy(compile=True, mask_ratio=(0.5, 0.9), batch_size=6)
    training = Training(recipe, debug_network, build_optimisers(debug_network, recipe), photos="")
    objective = torch.compile(Objective(debug_network, torch.float32), backend=compiled)
    images = torch.zeros(6, 3, 64, 64, dtype=torch.uint8)
    for visible in (8, 3, 5, 2):
        hidden = torch.arange(16).expand(6, -1) >= visible
        loop.step(cast("Objective", objective), Batch(images, hidden), training)
    assert compiled.frame_count == 1


def test_attention_in_bfloat16_on_a_cpu_is_made_of_its_parts(
    debug_network: MAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randint(
        0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    hidden = torch.arange(16).expand(4, -1) >= 4
    arguments = (images, *mask_orders(hidden, 4), hidden)
    expected = float(Objective(debug_network, torch.float32)(*arguments).detach())
    monkeypatch.delattr("torch.nn.functional.scaled_dot_product_attention")
    loss = Objective(debug_network, torch.bfloat16)(*arguments)
    assert float(loss.detach()) == pytest.approx(expected, rel=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_gpu_run_compiles_fits_the_clock_and_goes_on(precision: str, folder: Path, tmp_path: Path) -> None:
    recipe = toy(
        steps=0, minutes=2.0, batch_size=64, compile=True, precision=precision, data_path="device", ema=0.99,
        log_every=10, checkpoint_every=50, clip_norm=1.0,
    )  # fmt: skip
    run_until(recipe, folder, tmp_path / "run", 60, "cuda")
    assert torch.load(tmp_path / "run/state-0000050.pt", weights_only=True)["recipe"]["steps"] > 60
    recipe = replace(recipe, minutes=None, steps=70)
    assert pretrain(recipe, [folder], tmp_path / "run", resumed=True, device="cuda")
    assert log(tmp_path / "run")[-1]["step"] == 70


@pytest.mark.parametrize("told", [None, "nowhere/g++ -O1"])
def test_a_recipe_that_is_compiled_needs_a_compiler_and_says_so_before_anything_is_made(
    told: str | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    if told is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("CXX", told)
    with pytest.raises(RecipeError, match=r"there is no .*\+\+ on this machine") as caught:
        pretrain(toy(compile=True), [folder], tmp_path / "run", device="cpu")
    assert (caught.value.code, caught.value.field) == ("compiler", "compile")
    assert "compile = false" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_on_a_gpu_it_needs_one_for_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match="there is no gcc or clang on this machine"):
        launch._refuse_no_compiler("cuda")
    (tmp_path / "clang").touch(mode=0o755)
    launch._refuse_no_compiler("cuda")


# --- real processes ---------------------------------------------------------------------------------------


def _recipe(path: Path, **changes: object) -> Path:
    return write_recipe(path, **{"log_every": 3, "checkpoint_every": 5, **changes})


def _wait_for_step(exit_code: Callable[[], int | None], out: Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while exit_code() is None and time.monotonic() < deadline:
        log = out / "metrics.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
        if any(line.endswith("\n") and json.loads(line)["step"] >= step for line in lines[-2:]):
            return
        time.sleep(0.002)
    pytest.fail(f"step {step} was not reached (exit {exit_code()})")


def _command(recipe: Path, folder: Path, out: Path, *more: str) -> list[str]:
    return ["pretrain", str(recipe), "--data", str(folder), "--out", str(out), "--device", "cpu", *more]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_again_and_again_ends_bit_equal(folder: Path, tmp_path: Path) -> None:
    recipe, out = _recipe(tmp_path / "toy.toml", steps=160), tmp_path / "killed"
    whole = pretrain(load_recipe(str(recipe)), [folder], tmp_path / "whole", device="cpu")
    moments = random.Random()
    # Not from 5 on: that step is told before its state is written, the first to go on from.
    for number, (first, last) in enumerate(((6, 25), (35, 55), (65, 85))):
        command = _command(recipe, folder, out, *["--resume"] * (number > 0))
        with processes(1, command, tmp_path / "said") as (process,):
            _wait_for_step(lambda: process.exitcode, out, moments.randint(first, last))
            time.sleep(moments.random() * 0.05)  # at any place in a step, a report or a state
        assert process.exitcode == -signal.SIGKILL
    (out / "state-0000159.pt.1.part").write_bytes(b"left by the moment of death that chance may have missed")
    killed = pretrain(load_recipe(str(recipe)), [folder], out, resumed=True, device="cpu")
    assert equal(whole, killed)
    assert not list(out.glob("*.part"))
    assert log(out) == log(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)  # torchrun's processes start one after the other, each loading torch
def test_two_processes_train_as_one_and_recover_a_killed_rank(
    root: Path, folder: Path, shard: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path / "toy.toml", steps=90, accumulate=2, clip_norm=1.0)
    validated = ["--val", str(shard)]
    with processes(2, _command(recipe, folder, tmp_path / "whole", *validated), tmp_path / "said") as both:
        for process in both:
            process.join(400)
    assert [process.exitcode for process in both] == [0, 0]
    torchrun = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "3",
        "-m",
        "model",
    ]
    command = [sys.executable, "-m", *torchrun, *_command(recipe, folder, tmp_path / "killed", *validated)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as agent:
        try:
            _wait_for_step(agent.poll, tmp_path / "killed", random.Random().randint(10, 40))
            ranks = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
            os.kill(int(ranks[-1]), signal.SIGKILL)
            said = agent.communicate(timeout=400)[0].decode()
        finally:
            agent.terminate()
    assert agent.returncode == 0
    assert said.count("Weights:") == (tmp_path / "said").read_text().count("Weights:") == 1
    assert equal(*(tmp_path / name / "toy.safetensors" for name in ("whole", "killed")))
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    # One process: the same samples and masks; sums in another order, which training slowly amplifies.
    pretrain(load_recipe(str(recipe)), [folder], tmp_path / "alone", val=[shard], device="cpu")
    ours, alone = log(tmp_path / "whole"), log(tmp_path / "alone")
    assert [line.get("lr") for line in ours] == [line.get("lr") for line in alone]
    for two, one in zip(ours[:6], alone[:6], strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    assert ours[-1]["loss"] == pytest.approx(alone[-1]["loss"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_of_two_processes_one_that_is_told_to_stop_stops_both_with_the_same_step_saved(
    folder: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path / "toy.toml", steps=100_000, checkpoint_every=50_000)
    out = tmp_path / "run"
    with processes(2, _command(recipe, folder, out), tmp_path / "said") as both:
        _wait_for_step(lambda: both[0].exitcode, out, 3)
        both[1].terminate()
        for process in both:
            process.join(240)
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "said").read_text().count("Weights:") == 1
    step = resume.latest_step(out)
    assert 0 < step < 50_000
    assert store.read(out / "toy.safetensors").card["steps"] == step
