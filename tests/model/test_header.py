"""What is told from the head of a weight file alone, and heads that lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.checkpoints.report import inspect, inspect_header
from model.errors import CheckpointError


def head(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: 8 + int.from_bytes(data[:8], "little")]


def written(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def laid(shapes: dict[str, list[int]], **metadata: str) -> bytes:
    """A head of float32 tensors one behind the other."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return written(entries)


def test_the_head_tells_what_the_whole_file_does(debug_file: Path) -> None:
    whole = inspect(debug_file).to_dict()
    told = inspect_header(head(debug_file), debug_file.name, debug_file.stat().st_size).to_dict()
    assert told.pop("notes")[-1] == "Only names and shapes were read, not the values."
    assert told.pop("digest") == ""
    assert told == {**{key: whole[key] for key in told}, "path": debug_file.name}


def test_a_file_of_hugging_face_is_told_by_its_separate_weights() -> None:
    width, grid = 32, 17
    block = {
        f"attention.attention.{part}.{kind}": [width, width][: 2 if kind == "weight" else 1]
        for part in ("query", "key", "value")
        for kind in ("weight", "bias")
    } | {
        "attention.output.dense.weight": [width, width], "attention.output.dense.bias": [width],
        "layernorm_before.weight": [width], "layernorm_before.bias": [width],
        "layernorm_after.weight": [width], "layernorm_after.bias": [width],
        "intermediate.dense.weight": [4 * width, width], "intermediate.dense.bias": [4 * width],
        "output.dense.weight": [width, 4 * width], "output.dense.bias": [width],
    }  # fmt: skip
    shapes = {
        "vit.embeddings.cls_token": [1, 1, width], "vit.embeddings.position_embeddings": [1, grid, width],
        "vit.embeddings.patch_embeddings.projection.weight": [width, 3, 16, 16],
        "vit.embeddings.patch_embeddings.projection.bias": [width],
        "vit.layernorm.weight": [width], "vit.layernorm.bias": [width],
        **{f"vit.encoder.layer.{i}.{name}": shape for i in range(2) for name, shape in block.items()},
    }  # fmt: skip
    report = inspect_header(laid(shapes), "model.safetensors")
    assert (report.layout, report.content, report.missing, report.left_over) == (
        "Hugging Face ViTMAE", "encoder", (), (),
    )  # fmt: skip
    assert report.usable_for == ("evaluate", "convert")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a safetensors file"),
        (b"PK\x03\x04 a zip, as torch writes", "not a safetensors file"),
        (written({})[:-1], "was cut"),
        ((20).to_bytes(8, "little") + b"{" + b"[" * 19, "is not JSON"),
        (written({"__metadata__": {"format": 1}}), "more than text"),
        (written({"a": {"dtype": "F32", "shape": [2]}}), "not understood"),
        (written({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}), "not understood"),
        (written({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}), "its shape needs others"),
        (written({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}), "has the shape"),
        (written({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}), "has the shape"),
        (written({"a": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}), "leave gaps"),
        (laid({"layer4.0.conv1.weight": [8, 8]}), "a ResNet"),
        (laid({"a.weight": [8, 8]}), "no known MAE layout"),
        (laid({"blocks.0.attn.qkv.weight": []}), "no known MAE layout|lacks|contradict"),
    ],
)  # fmt: skip
def test_what_is_no_head_of_a_known_model_is_refused(data: bytes, words: str) -> None:
    try:
        report = inspect_header(data, "a.safetensors")
    except CheckpointError as error:
        told = f"{error} {error.hint}"
    else:
        assert report.usable_for == ()
        told = " ".join(report.notes)
    assert any(word in told for word in words.split("|")), told


def test_a_cut_file_is_told_from_a_whole_one(debug_file: Path) -> None:
    with pytest.raises(CheckpointError, match="it was cut"):
        inspect_header(head(debug_file), "debug.safetensors", debug_file.stat().st_size - 1)


def test_a_head_that_promises_a_giant_builds_nothing() -> None:
    side = 2**9
    shapes = {
        "cls_token": [1, 1, 2**18], "patch_embed.proj.weight": [2**18, 3, 16, 16], "pos_embed": [1, side**2 + 1, 64],
        "blocks.0.mlp.fc1.weight": [2**12, 2**18], "blocks.0.attn.qkv.weight": [2**10, 2**18],
    }  # fmt: skip
    report = inspect_header(laid(shapes), "giant.safetensors")
    assert report.usable_for == ()
    assert "128 patches per side" in report.notes[0]
    shapes["pos_embed"] = [1, 128**2 + 1, 64]
    assert any("larger" in note or "heads" in note for note in inspect_header(laid(shapes), "g").notes)


def test_a_head_that_promises_endless_channels_is_refused_before_they_are_counted(debug_file: Path) -> None:
    entries = json.loads(head(debug_file)[8:])
    config = json.loads(entries["__metadata__"]["config"])
    entries["__metadata__"]["config"] = json.dumps(config | {"channels": 10**15})
    with pytest.raises(CheckpointError, match="channels 1000000000000000 must lie between 1 and 1024"):
        inspect_header(written(entries), "endless.safetensors")


NAMES = st.sampled_from(
    ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight",
     "decoder_embed.weight", "decoder_pred.weight", "decoder_blocks.0.mlp.fc1.weight", "mask_token", "head.weight",
     "layers.0.attention.q_proj.weight", "layers.0.attention.k_proj.weight", "blocks.7.x", "norm.weight"]
)  # fmt: skip
METADATA = st.fixed_dictionaries(
    {},
    optional={
        "format": st.sampled_from(["unmask-mae-1", "pt"]),
        "config": st.sampled_from(['{"heads": 0}', '{"heads": "x"}', "[]", "{", '{"width": 1e400}', '{"depth": null}']),
        "unmask": st.sampled_from(["{}", "[", '{"config": {"patch_size": 0}}', "[" * 5000]),
    },
)  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    st.dictionaries(NAMES, st.lists(st.sampled_from([1, 2, 3, 8, 17, 2**20]), max_size=4), max_size=10),
    METADATA,
)
def test_no_lying_head_does_worse_than_be_refused(
    shapes: dict[str, list[int]], metadata: dict[str, str]
) -> None:
    try:
        report = inspect_header(laid(shapes, **metadata), "lie.safetensors")
    except CheckpointError:
        return
    json.dumps(report.to_dict())
