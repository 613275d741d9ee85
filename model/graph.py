"""The network once more, as two OpenVINO graphs made straight from named arrays: no torch, no timm, no export.

    encoder: visible [B, K, V], positions [B, K, D]                          -> latent [B, 1 + K, D]
    decoder: latent, order [B, 1 + L], positions [1 | B, 1 + L, d]           -> pred [B, L, V]

Every size but the widths is free, so one pair of graphs serves every batch, ratio and grid. Position tables come in
from outside for the same reason. That this is the network of ``network.py`` is not believed but measured: no graph
serves before ``engines`` has compared it with torch on the very weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from model.config import MAEConfig

Weights = Mapping[str, NDArray[Any]]
Node = Any  # openvino's operators are typed as whatever they wrap

_EPSILON = 1e-6  # of every norm, as in network.py


@cache
def core() -> ov.Core:
    """The one of this process, for ever.

    A core that is made gives its thread another stack for signals, and one that goes puts back what it found. Of two
    that go in the order they came the second puts back what the first has freed: the next signal, the SIGTERM of a
    graceful stop, then ends the process (seen with OpenVINO 2026.4).
    """
    return ov.Core()


class _Builder:
    """Layers over the arrays of one weight file."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def array(self, name: str) -> NDArray[np.float32]:
        return np.ascontiguousarray(self._weights[name], dtype=np.float32)

    def linear(self, x: Node, name: str, weight: NDArray[np.float32] | None = None) -> Node:
        matrix = self.array(f"{name}.weight") if weight is None else weight
        product = op.matmul(x, op.constant(matrix), False, True)
        return op.add(product, op.constant(self.array(f"{name}.bias")))

    def norm(self, x: Node, name: str) -> Node:
        axis = op.constant(np.array([-1], dtype=np.int64))
        normalised = op.mvn(x, axis, True, _EPSILON, "inside_sqrt")
        scaled = op.multiply(normalised, op.constant(self.array(f"{name}.weight")))
        return op.add(scaled, op.constant(self.array(f"{name}.bias")))

    def block(self, x: Node, name: str, heads: int) -> Node:
        width = self._weights[f"{name}.norm1.weight"].shape[0]
        x = op.add(x, self._attention(self.norm(x, f"{name}.norm1"), f"{name}.attn", heads, width))
        hidden = op.gelu(self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"), "erf")
        return op.add(x, self.linear(hidden, f"{name}.mlp.fc2"))

    def _attention(self, x: Node, name: str, heads: int, width: int) -> Node:
        # 0 keeps a size as it comes in: [B, N, 3 D] -> [B, N, 3, heads, D / heads] -> [3, B, heads, N, D / heads]
        cut = op.reshape(self.linear(x, f"{name}.qkv"), _ints(0, 0, 3, heads, width // heads), True)
        parts = op.split(op.transpose(cut, _ints(2, 0, 3, 1, 4)), op.constant(np.int64(0)), 3)
        query, key, value = (op.squeeze(part, _ints(0)) for part in parts.outputs())
        mixed = op.scaled_dot_product_attention(query, key, value)
        joined = op.reshape(op.transpose(mixed, _ints(0, 2, 1, 3)), _ints(0, 0, width), True)
        return self.linear(joined, f"{name}.proj")


def encoder(config: MAEConfig, weights: Weights) -> ov.Model:
    """The encoder; positions of the patches are an input, those of the class token lie inside."""
    build = _Builder(weights)
    visible = op.parameter([-1, -1, config.patch_values], np.float32, name="visible")
    positions = op.parameter([-1, -1, config.width], np.float32, name="positions")
    # [D, C, P, P] -> [D, P * P * C]: a convolution's weight has the colour first, patches have it last.
    kernel = build.array("patch_embed.proj.weight").transpose(0, 2, 3, 1).reshape(config.width, -1)
    patches = op.add(build.linear(visible, "patch_embed.proj", np.ascontiguousarray(kernel)), positions)
    # The class token's position is the table's first row, zero in every formula; a stored table may differ.
    token = build.array("cls_token")
    if "pos_embed" in weights:
        token = token + build.array("pos_embed")[:, :1]
    x = op.concat([_repeat(token, visible, _ints(1)), patches], 1)
    for number in range(config.depth):
        x = build.block(x, f"blocks.{number}", config.heads)
    return _model(build.norm(x, "norm"), [visible, positions], "encoder")


def decoder(config: MAEConfig, weights: Weights) -> ov.Model:
    """The decoder; ``order`` says for the class token and every patch where it stands in (latent, mask tokens)."""
    build = _Builder(weights)
    latent = op.parameter([-1, -1, config.width], np.float32, name="latent")
    order = op.parameter([-1, -1], np.int32, name="order")
    positions = op.parameter([-1, -1, config.decoder_width], np.float32, name="positions")
    length = op.gather(op.shape_of(order), _ints(1), op.constant(np.int64(0)))
    # A full row of mask tokens: more than needed, but no size has to be computed from the number hidden.
    masked = _repeat(build.array("mask_token"), latent, length)
    tokens = op.concat([build.linear(latent, "decoder_embed"), masked], 1)
    x = op.add(op.gather(tokens, order, op.constant(np.int64(1)), 1), positions)
    for number in range(config.decoder_depth):
        x = build.block(x, f"decoder_blocks.{number}", config.decoder_heads)
    patches = op.slice(build.norm(x, "decoder_norm"), _ints(1), _ints(2**31 - 1), _ints(1), _ints(1))
    return _model(build.linear(patches, "decoder_pred"), [latent, order, positions], "decoder")


def _repeat(token: NDArray[np.float32], like: Node, length: Node) -> Node:
    """``[1, 1, D]`` to ``[B, length, D]`` with the batch of another tensor."""
    batch = op.gather(op.shape_of(like), _ints(0), op.constant(np.int64(0)))
    shape = op.concat([batch, length, _ints(token.shape[-1])], 0)
    return op.broadcast(op.constant(token), shape)


def _ints(*values: int) -> Node:
    return op.constant(np.array(values, dtype=np.int64))


def _model(result: Node, inputs: list[Node], name: str) -> ov.Model:
    return ov.Model([op.result(result)], inputs, name)
