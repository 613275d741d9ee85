"""What computes: one call from pixels and a mask to a prediction, by torch or by OpenVINO.

On a CPU OpenVINO computes the same in two thirds of the time, and a process that uses it needs neither torch nor
timm. It is believed only after it has met torch's own answers on the loaded weights (``proof.Proof``); otherwise
torch serves, and says why. Knows no picture file, no option and no view.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.config import MAEConfig
from model.devices import has_bf16, usable_cpus
from model.errors import CheckpointError
from model.positions import Grid, sincos_table
from model.recent import Recent
from model.views import Colours

if TYPE_CHECKING:
    import torch

    from model.network import MAE

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

ENGINES = ("auto", "openvino", "torch")
PRECISIONS = ("auto", "float32", "bfloat16")
_TABLES = {"pos_embed": "width", "decoder_pos_embed": "decoder_width"}


class Engine(Protocol):
    """What every engine does.

    Attributes:
        name: ``torch`` or ``openvino``.
        precision: In which numbers it computes: ``float32`` or ``bfloat16``.
    """

    name: str
    precision: str

    def run(self, pixels: Pixels, ids_keep: Ints, ids_restore: Ints, positions: str = "both") -> Floats:
        """Predict every patch.

        Args:
            pixels: ``[B, H, W, C]``, whole patches of any grid that the engine ``handles``.
            ids_keep: ``[B, K]``, the visible patches, row-major.
            ids_restore: ``[B, L]``, where patch i stands in (visible, hidden).
            positions: ``both`` or ``hidden_only``, see ``network.MAE.decode``.

        Returns:
            ``pred [B, L, P*P*C]`` in target units.
        """

    def encode(self, pixels: Pixels) -> Floats:
        """The encoder's view of whole pictures: ``latent [B, 1 + L, D]``, class token first."""

    def handles(self, grid: Grid) -> bool:
        """Whether pictures of this many patches can be run."""


class TorchEngine:
    """The network as it was trained.

    Args:
        network: In evaluation mode.
        device: Where to run it.
        precision: ``float32``; ``bfloat16`` where the device has it; ``auto``: that on a GPU, float32 on a CPU, whose
            answers are those that others must meet.

    Raises:
        CheckpointError: The device does not have the precision.
    """

    name = "torch"

    def __init__(self, network: MAE, device: str, precision: str = "auto") -> None:
        import torch

        self._device = torch.device(device)
        if precision == "auto":
            fast = self._device.type != "cpu" and has_bf16(self._device)
            precision = "bfloat16" if fast else "float32"
        elif precision == "bfloat16" and not has_bf16(self._device):
            raise _no_bf16(f"Device {device!r}")
        self.precision = precision
        self._network = network.to(self._device).eval()

    def handles(self, grid: Grid) -> bool:  # noqa: D102 (said by Engine)
        return True

    def run(  # noqa: D102 (said by Engine)
        self, pixels: Pixels, ids_keep: Ints, ids_restore: Ints, positions: str = "both"
    ) -> Floats:
        import torch

        with torch.inference_mode(), self._autocast():
            ids = (torch.from_numpy(array).to(self._device) for array in (ids_keep, ids_restore))
            result: Floats = self._network(self._image(pixels), *ids, positions).float().cpu().numpy()
        return result

    def encode(self, pixels: Pixels) -> Floats:  # noqa: D102 (said by Engine)
        import torch

        with torch.inference_mode():  # on a GPU too in float32: embeddings are compared, not looked at
            result: Floats = self._network.encode(self._image(pixels)).float().cpu().numpy()
        return result

    def _image(self, pixels: Pixels) -> torch.Tensor:
        """On the device first, for a byte is a quarter of a number."""
        import torch

        moved = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device).permute(0, 3, 1, 2)
        return self._network.normalise(moved.float() / 255)

    def _autocast(self) -> torch.autocast:
        import torch

        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


class OpenVINOEngine:
    """Two compiled graphs, encoder and decoder, for every batch, ratio and grid.

    Args:
        config: Shape of the network.
        weights: Under house names, numpy; positions may be left out.
        threads: CPU threads; None for those this process may use.
        precision: ``float32``; ``bfloat16`` where the processor computes in it.

    Raises:
        CheckpointError: The processor does not have the precision.
        RuntimeError: OpenVINO cannot run here, or this is not a network it is given a graph of.
    """

    name = "openvino"

    def __init__(
        self,
        config: MAEConfig,
        weights: Mapping[str, NDArray[Any]],
        *,
        threads: int | None = None,
        precision: str = "float32",
    ) -> None:
        from model import graph  # with it comes openvino, which is not needed where torch computes

        if config.mask_tokens != "decoder":
            raise NotImplementedError("the encoder of this model works on mask tokens too")
        if config.decoder != "paper":
            raise NotImplementedError("the decoder of this model leaves the class token out")
        core = graph.core()
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise _no_bf16("This processor")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads or usable_cpus(),
            # Never left to the library: where a processor has bfloat16 it would take that.
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            # A thread bound to a core waits for whoever else sits there: decoders, another service.
            "ENABLE_CPU_PINNING": False,
        }
        self.precision = precision
        self._config = config
        self._requests = [
            core.compile_model(build(config, weights), "CPU", settings).create_infer_request()
            for build in (graph.encoder, graph.decoder)
        ]
        self._own, self._formula = _tables(config, weights)
        # Pictures of one shape tend to follow each other.
        self._others: Recent[Floats] = Recent(8)
        self._lock = threading.Lock()  # a request is one set of buffers

    def handles(self, grid: Grid) -> bool:
        """Any grid, but only its own where the stored positions are not the formula's: those torch resizes."""
        return self._formula or grid == self._config.grid

    def run(  # noqa: D102 (said by Engine)
        self, pixels: Pixels, ids_keep: Ints, ids_restore: Ints, positions: str = "both"
    ) -> Floats:
        grid = self._grid(pixels)
        encoder, decoder = self._requests
        where = self._table("decoder_pos_embed", grid)
        if positions == "hidden_only":
            hidden = ids_restore >= ids_keep.shape[1]  # [B, L]
            where = np.concatenate(
                [where[:, :1].repeat(len(pixels), axis=0), where[:, 1:] * hidden[..., None]], 1
            )
        order = np.concatenate([np.zeros_like(ids_restore[:, :1]), ids_restore + 1], axis=1)
        with self._lock:
            latent = encoder.infer(self._visible(pixels, ids_keep, grid), share_inputs=True)[0]
            inputs = [latent, order.astype(np.int32), np.ascontiguousarray(where)]
            return np.array(decoder.infer(inputs, share_inputs=True)[0])  # the next call reuses the buffer

    def encode(self, pixels: Pixels) -> Floats:  # noqa: D102 (said by Engine)
        grid = self._grid(pixels)
        everything = np.arange(grid[0] * grid[1])[None].repeat(len(pixels), axis=0)
        with self._lock:
            visible = self._visible(pixels, everything, grid)
            return np.array(self._requests[0].infer(visible, share_inputs=True)[0])

    def _visible(self, pixels: Pixels, ids_keep: Ints, grid: Grid) -> list[Floats]:
        """The visible patches and their positions: hidden pixels never reach the graph."""
        side = self._config.patch_size
        cut = pixels.reshape(len(pixels), grid[0], side, grid[1], side, -1).transpose(0, 1, 3, 2, 4, 5)
        patches = cut.reshape(len(pixels), grid[0] * grid[1], side, side, -1)
        taken = patches[np.arange(len(pixels))[:, None], ids_keep]  # [B, K, P, P, C]
        visible = Colours.of(self._config).normalised(taken)
        return [visible.reshape(*ids_keep.shape, -1), self._table("pos_embed", grid)[0, 1:][ids_keep]]

    def _grid(self, pixels: Pixels) -> Grid:
        side = self._config.patch_size
        return pixels.shape[1] // side, pixels.shape[2] // side

    def _table(self, name: str, grid: Grid) -> Floats:
        """``[1, 1 + L, width]``."""
        if grid == self._config.grid:
            return self._own[name]
        width = getattr(self._config, _TABLES[name])
        return self._others.get((name, grid), lambda: sincos_table(*grid, width, self._config.grid))


def _tables(config: MAEConfig, weights: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Floats], bool]:
    """Position tables of the model's own grid, and whether they are those of the formula."""
    tables, formula = {}, True
    for name, width in _TABLES.items():
        own = sincos_table(*config.grid, getattr(config, width))
        stored = weights.get(name, own).astype(np.float32)
        formula = formula and bool(np.allclose(stored, own, rtol=0, atol=1e-5))
        tables[name] = stored
    return tables, formula


def _no_bf16(who: str) -> CheckpointError:
    return CheckpointError(
        f"{who} does not compute in bfloat16.",
        code="precision",
        hint="Leave the precision out, for float32.",
        field="precision",
    )
