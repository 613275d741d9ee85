"""Every engine computes what torch computes, or does not serve."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from model import graph
from model.checkpoints import files, store
from model.checkpoints.convert import convert
from model.checkpoints.registry import shipped
from model.config import MAEConfig
from model.devices import has_bf16
from model.engines import OpenVINOEngine, TorchEngine
from model.errors import CheckpointError
from model.loading import open_weights, prove, said_of
from model.masking import hidden_count, random_hidden
from model.network import MAE
from model.pretrain.recipe import Adversarial
from model.proof import LIMITS, Proof, make_proof
from tests.training import toy

Inputs = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]

ROOT = Path(__file__).resolve().parents[2]


def arrays(network: MAE) -> dict[str, NDArray[Any]]:
    return {name: value.detach().numpy() for name, value in network.state_dict().items()}


def inputs(grid: tuple[int, int], channels: int, ratio: str, batch: int = 2) -> Inputs:
    patches = grid[0] * grid[1]
    pixels = np.random.default_rng(3).integers(
        0, 256, (batch, grid[0] * 16, grid[1] * 16, channels), dtype=np.uint8
    )
    hidden = random_hidden(np.arange(batch, dtype=np.uint64), patches, hidden_count(ratio, patches))
    order = np.argsort(hidden, axis=1, kind="stable")
    visible = int((~hidden[0]).sum())
    return (
        pixels,
        order[:, :visible].astype(np.int64),
        np.argsort(order, axis=1, kind="stable").astype(np.int64),
    )


@pytest.mark.parametrize("positions", ["both", "hidden_only"])
@pytest.mark.parametrize(("grid", "ratio"), [((4, 4), "0.75"), ((4, 4), "0.1"), ((3, 7), "0.5")])
def test_openvino_predicts_what_torch_predicts_on_any_grid(
    debug_network: MAE, grid: tuple[int, int], ratio: str, positions: str
) -> None:
    fast = OpenVINOEngine(debug_network.config, arrays(debug_network))
    given = inputs(grid, 3, ratio)
    expected = TorchEngine(debug_network, "cpu").run(*given, positions)
    assert np.abs(fast.run(*given, positions) - expected).max() < 1e-5 * np.abs(expected).max()


def test_openvino_encodes_what_torch_encodes(debug_network: MAE) -> None:
    fast = OpenVINOEngine(debug_network.config, arrays(debug_network))
    pixels, *_ = inputs((4, 5), 3, "0.5")
    expected = TorchEngine(debug_network, "cpu").encode(pixels)
    assert expected.shape == (2, 21, 32)
    assert np.abs(fast.encode(pixels) - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_grey_network_runs_too() -> None:
    network = MAE(
        MAEConfig(
            image_size=64,
            channels=1,
            width=32,
            depth=1,
            heads=2,
            decoder_width=16,
            decoder_depth=1,
            decoder_heads=2,
        )
    )
    given = inputs((4, 4), 1, "0.5")
    expected = TorchEngine(network, "cpu").run(*given)
    assert np.allclose(OpenVINOEngine(network.config, arrays(network)).run(*given), expected, atol=1e-5)


def test_a_request_gives_the_same_bytes_every_time(debug_network: MAE) -> None:
    fast = OpenVINOEngine(debug_network.config, arrays(debug_network))
    given, other = inputs((4, 4), 3, "0.75", 1), inputs((4, 4), 3, "0.5", 3)
    first = fast.run(*given)
    fast.run(*other)
    assert np.array_equal(fast.run(*given), first)


def test_stored_positions_are_used_and_bind_to_the_own_grid(debug_network: MAE) -> None:
    with torch.no_grad():
        debug_network.pos_embed += 0.1 * torch.randn(debug_network.pos_embed.shape)
    fast = OpenVINOEngine(debug_network.config, arrays(debug_network))
    given = inputs((4, 4), 3, "0.75")
    assert np.allclose(fast.run(*given), TorchEngine(debug_network, "cpu").run(*given), atol=1e-5)
    assert fast.handles((4, 4))
    assert not fast.handles((3, 7)), "torch resizes such tables"


def test_a_proof_outlives_the_process_and_belongs_to_its_weights(debug_file: Path, tmp_path: Path) -> None:
    checkpoint = store.read(debug_file)
    proof = make_proof(checkpoint)
    proof.save(tmp_path / "kept.npz")
    again = Proof.read(tmp_path / "kept.npz", checkpoint.digest)
    assert again is not None
    assert again.error(TorchEngine(checkpoint.network, "cpu").run) == 0.0
    assert Proof.read(tmp_path / "kept.npz", "0" * 64) is None
    (tmp_path / "cut.npz").write_bytes((tmp_path / "kept.npz").read_bytes()[:500])
    assert Proof.read(tmp_path / "cut.npz", checkpoint.digest) is None
    assert Proof.read(tmp_path / "none.npz", checkpoint.digest) is None
    whole = (tmp_path / "kept.npz").read_bytes()
    for place in range(0, len(whole), max(len(whole) // 500, 1)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "damaged.npz").write_bytes(damaged)
        Proof.read(tmp_path / "damaged.npz", checkpoint.digest)  # whatever numpy, zlib or tokenize say


def test_one_wrong_weight_does_not_pass(debug_file: Path) -> None:
    checkpoint = store.read(debug_file)
    wrong = arrays(checkpoint.network)
    wrong["blocks.1.mlp.fc2.bias"] = wrong["blocks.1.mlp.fc2.bias"].copy()
    wrong["blocks.1.mlp.fc2.bias"][3] += 0.001  # one of them: the next norm takes a common shift away
    assert make_proof(checkpoint).error(OpenVINOEngine(checkpoint.network.config, wrong).run) > 1e-5


def test_a_failed_proof_leaves_torch_to_serve_and_says_so(
    debug_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(LIMITS, "float32", -1.0)  # nothing is that good
    loaded = open_weights(debug_file, "cpu")
    assert loaded.engine.name == "torch"
    assert "differs from torch by" in loaded.note
    assert "Torch computes instead" in caplog.text
    with pytest.raises(CheckpointError, match="differs from torch by"):
        open_weights(debug_file, "cpu", engine="openvino")


@pytest.mark.skipif(
    "BF16" not in graph.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="the processor does not compute in bfloat16",
)
@pytest.mark.parametrize("name", ["mini", "mini-grid"])
def test_rounding_to_bfloat16_does_not_cost_shipped_weights_their_fast_engine(name: str) -> None:
    loaded = open_weights(shipped(name), "cpu", precision="bfloat16")
    assert (loaded.engine.name, loaded.engine.precision, loaded.note) == ("openvino", "bfloat16", "")
    assert loaded.error is not None
    assert 1e-3 < loaded.error < LIMITS["bfloat16"]


def test_a_graph_that_is_wrong_in_float32_does_not_serve_rounded(
    debug_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "float32", -1.0)
    with pytest.raises(CheckpointError, match="allowed in float32"):
        open_weights(debug_file, "cpu", engine="openvino", precision="bfloat16")


def test_the_second_start_needs_the_file_and_the_proof_alone(
    debug_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("model.loading.proofs", lambda: files.cache("proofs"))
    first = open_weights(debug_file, "cpu")
    assert first.engine.name == "openvino"
    assert first.error is not None
    code = (
        "import sys; from pathlib import Path; from model.loading import open_weights;"
        f"loaded = open_weights(Path({str(debug_file)!r}));"
        "print(loaded.engine.name, loaded.facts.parameters, sorted({'torch', 'timm'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        maxsplit=2
    )
    assert said == ["openvino", str(first.facts.parameters), "[]\n"]


def test_a_signal_is_heard_after_engines_came_and_went(
    debug_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = (
        "import signal; from pathlib import Path; from model.loading import open_weights;"
        "heard = []; signal.signal(signal.SIGTERM, lambda *_: heard.append(1));"
        f"load = lambda: open_weights(Path({str(debug_file)!r}), 'cpu');"
        "first = load(); second = load(); del first; del second; signal.raise_signal(signal.SIGTERM); print(heard)"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (0, "[1]\n")


def test_a_proof_beside_the_weights_is_found(
    debug_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.loading.proofs", lambda: tmp_path / "empty")
    place, error = prove(debug_file)
    assert place == debug_file.with_name("debug.proof.npz")
    assert 0 < error < 1e-5
    open_weights(debug_file, "cpu")
    assert not (tmp_path / "empty").exists(), "nothing had to be made"


def test_a_proof_is_not_made_beside_what_torch_has_to_read_anyway(debug_file: Path, tmp_path: Path) -> None:
    theirs = convert(debug_file, tmp_path / "a.pth", to="authors")
    with pytest.raises(CheckpointError, match="takes torch to read it") as caught:
        prove(theirs)
    assert "--to unmask" in caught.value.hint
    assert not list(tmp_path.glob("a.pth.*"))


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("config", "{"),
        ("config", "[1]"),
        ("config", "[]"),
        ("config", '{"patch_size": 0.0}'),
        ("config", "[" * 100_000),
        ("card", "[1]"),
    ],
)
def test_a_head_that_cannot_be_read_says_nothing_and_is_refused(
    debug_file: Path, field: str, text: str
) -> None:
    assert said_of(debug_file)["grid"] == list(store.read(debug_file).network.config.grid)
    with safe_open(debug_file, "numpy") as file:
        head = file.metadata() | {field: text}
    save_file(load_file(debug_file), debug_file, metadata=head)
    assert said_of(debug_file) == {}
    with pytest.raises(CheckpointError):
        store.read(debug_file)


def test_a_precision_the_processor_lacks_is_refused(
    debug_network: MAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32"])
    with pytest.raises(CheckpointError, match="bfloat16"):
        OpenVINOEngine(debug_network.config, arrays(debug_network), precision="bfloat16")


# --- devices and precisions -------------------------------------------------------------------------------

HasBF16 = Callable[[bool], None]


class Unmoved(MAE):
    """A network that says it went to a GPU which is not here."""

    def to(self, *_: Any, **__: Any) -> Any:
        return self


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> HasBF16:
    """Makes every processor and GPU one that has bfloat16, or one that has not."""

    def answer(yes: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": yes})
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: yes or including_emulation
        )

    return answer


@pytest.mark.parametrize(
    ("device", "able", "asked", "got"),
    [
        ("cuda", True, "auto", "bfloat16"),
        ("cuda", True, "float32", "float32"),
        ("cuda", True, "bfloat16", "bfloat16"),
        ("cuda", False, "auto", "float32"),  # Turing and older
        ("mps", True, "auto", "float32"),
        ("cpu", True, "auto", "float32"),
        ("cpu", True, "bfloat16", "bfloat16"),
    ],
)
def test_torch_states_the_precision_asked_for_or_the_fast_one_of_a_gpu(
    debug_network: MAE, has: HasBF16, device: str, able: bool, asked: str, got: str
) -> None:
    has(able)
    assert TorchEngine(Unmoved(debug_network.config), device, asked).precision == got


def test_torch_computes_in_the_precision_it_states(debug_network: MAE, has: HasBF16) -> None:
    has(True)
    given = inputs((4, 4), 3, "0.75")
    exact, same, rounded = (
        TorchEngine(debug_network, "cpu", precision).run(*given)
        for precision in ("auto", "float32", "bfloat16")
    )
    assert np.array_equal(exact, same)
    assert 1e-4 < np.abs(rounded - exact).max() / np.abs(exact).max() < 2e-2


@pytest.mark.parametrize("device", ["cuda", "cpu", "mps"])
def test_torch_refuses_a_precision_the_device_lacks(debug_network: MAE, has: HasBF16, device: str) -> None:
    has(False)
    with pytest.raises(CheckpointError, match=f"{device}.*bfloat16") as caught:
        TorchEngine(Unmoved(debug_network.config), device, "bfloat16")
    assert caught.value.field == "precision"


def test_a_gpu_is_asked_about_itself_and_not_about_the_current_one(
    has: HasBF16, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(True)
    asked: list[torch.device] = []

    def current(device: torch.device) -> nullcontext[None]:
        asked.append(device)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", current)
    assert has_bf16(torch.device("cuda:1"))
    assert asked == [torch.device("cuda:1")]


@pytest.mark.parametrize("able", [True, False])
def test_training_and_serving_agree_on_what_a_device_has(has: HasBF16, able: bool) -> None:
    has(able)
    for kind in ("cpu", "cuda", "mps"):
        device = torch.device(kind)
        fast = toy(precision="auto").arithmetic(device) is torch.bfloat16
        assert fast == has_bf16(device) == (able and kind != "mps")
        assert toy(precision="bf16").arithmetic(device) is torch.bfloat16
        assert toy(precision="fp16").arithmetic(device) is torch.float16
        assert toy(precision="fp32").arithmetic(device) is torch.float32


def test_a_gpu_without_bfloat16_trains_in_float16_but_for_an_adversarial_stage(has: HasBF16) -> None:
    has(False)
    first = toy(precision="auto")
    second = toy(precision="auto", adversarial=Adversarial())
    assert [first.arithmetic(torch.device(kind)) for kind in ("cuda", "cpu", "mps")] == [
        torch.float16, torch.float32, torch.float32,
    ]  # fmt: skip
    assert second.arithmetic(torch.device("cuda")) is torch.float32


def test_the_precision_asked_for_reaches_torch(debug_file: Path, has: HasBF16) -> None:
    has(True)
    assert open_weights(debug_file, "cpu", engine="torch").engine.precision == "float32"
    assert (
        open_weights(debug_file, "cpu", engine="torch", precision="bfloat16").engine.precision == "bfloat16"
    )
    has(False)
    with pytest.raises(CheckpointError, match="does not compute in bfloat16"):
        open_weights(debug_file, "cpu", engine="torch", precision="bfloat16")


def test_where_openvino_cannot_be_had_torch_computes_in_the_precision_asked_for(
    debug_file: Path, has: HasBF16, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> OpenVINOEngine:
        raise RuntimeError("not here")

    monkeypatch.setattr("model.loading.OpenVINOEngine", fail)
    has(True)
    for asked, got in (("auto", "float32"), ("bfloat16", "bfloat16")):
        engine = open_weights(debug_file, "cpu", precision=asked).engine
        assert (engine.name, engine.precision) == ("torch", got)


def test_openvino_is_refused_on_a_gpu_and_found_a_cpu(
    debug_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="OpenVINO computes on the CPU") as caught:
        open_weights(debug_file, "cuda", engine="openvino")
    assert caught.value.field == "engine"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Path, "exists", lambda _: True)  # the driver's sign
    loaded = open_weights(debug_file, engine="openvino")
    assert (loaded.engine.name, loaded.engine.precision, loaded.device) == ("openvino", "float32", "cpu")


@pytest.mark.parametrize("wrong", [{"engine": "tensorrt"}, {"precision": "half"}])
def test_an_engine_or_precision_that_is_none_is_named(debug_file: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(wrong.values()))) as caught:
        open_weights(debug_file, "cpu", **wrong)  # type: ignore[arg-type]
    assert caught.value.field == next(iter(wrong))
