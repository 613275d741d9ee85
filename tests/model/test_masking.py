"""Masks: exact counts, fixed seeds, clear refusals."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.cover import complementary
from model.errors import MaskError
from model.masking import (
    MAX_SEED,
    SAMPLERS,
    Mask,
    hidden_count,
    mask_from_drawing,
    mask_from_indices,
    noise,
    random_hidden,
    sample_mask,
)

GRID = (14, 14)


@given(
    strategy=st.sampled_from(sorted(SAMPLERS)),
    rows=st.integers(2, 20),
    columns=st.integers(2, 20),
    share=st.floats(0, 1),
    seed=st.integers(0, MAX_SEED),
)
def test_every_strategy_hides_exactly_the_asked_number(
    strategy: str, rows: int, columns: int, share: float, seed: int
) -> None:
    patches = rows * columns
    count = min(max(round(share * patches), 1), patches - 1)
    mask = sample_mask(strategy, (rows, columns), count, seed)
    assert mask.hidden.shape == (patches,)
    assert mask.hidden_count == count


@pytest.mark.parametrize(
    ("strategy", "grid", "count", "seed", "digest"),
    [
        ("random", GRID, 147, 7, "5c1dd24e28bc9d04"),
        ("block", GRID, 98, 7, "ce18b9b00e7e2d27"),
        pytest.param("block", GRID, 147, 3, "93a7c1d7abac9ac7", id="block that grows at its edge"),
        pytest.param(
            "block", (6, 20), 90, 7, "d9b2af655d304de2", id="block that some draws are too high for"
        ),
        pytest.param(
            "block", (20, 6), 90, 7, "df87317e507b1994", id="block that some draws are too wide for"
        ),
        ("grid", GRID, 120, 7, "d9143b9ce0011f12"),
        ("grid", (5, 8), 20, 7, "9da5909a9cc49b38"),
    ],
)
def test_a_seed_gives_the_same_mask_for_ever(
    strategy: str, grid: tuple[int, int], count: int, seed: int, digest: str
) -> None:
    """Golden: a change here breaks every link and figure that names a seed."""
    found = hashlib.sha256(sample_mask(strategy, grid, count, seed).hidden.tobytes()).hexdigest()[:16]
    assert found == digest


@pytest.mark.parametrize(
    ("strategy", "grid", "seed", "digest"),
    [
        ("random", GRID, 7, "9321265a8f68bb54"),
        ("random", GRID, 8, "dfb9af660cacd9d6"),
        ("block", GRID, 7, "52a1c2c968790c9f"),
        ("block", GRID, 8, "006674c4e9e87da1"),
        ("block", (11, 37), 7, "957e4fe8aec73d10"),
        ("grid", GRID, 7, "1171e360dc2946af"),  # the four shifts, whatever the seed
    ],
)
def test_a_seed_gives_the_same_complementary_masks_for_ever(
    strategy: str, grid: tuple[int, int], seed: int, digest: str
) -> None:
    """Golden as well: the order in which ``complete`` hides patches is part of the promise."""
    hidden = np.stack([mask.hidden for mask in complementary(strategy, grid, None, seed)])
    assert hashlib.sha256(hidden.tobytes()).hexdigest()[:16] == digest


def test_noise_is_splitmix64() -> None:
    """First outputs of the published generator from the state our key mixing gives."""

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    state = mix(12345)
    expected = []
    for _ in range(5):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        expected.append(mix(state))
    assert noise(np.array([12345], dtype=np.uint64), 5)[0].tolist() == expected


def test_other_seeds_give_other_masks() -> None:
    masks = {
        sample_mask(s, GRID, 98, seed).hidden.tobytes() for s in ("random", "block") for seed in range(50)
    }
    assert len(masks) == 100


def test_random_masks_hide_every_patch_equally_often() -> None:
    hidden = random_hidden(np.arange(4000, dtype=np.uint64), 196, 147)
    share = hidden.mean(axis=0)
    # Five deviations of a mean of 4000 draws.
    assert np.abs(share - 0.75).max() < 5 * math.sqrt(0.75 * 0.25 / 4000)


def test_grid_mask_hides_three_of_four() -> None:
    hidden = sample_mask("grid", GRID, 147, 3).hidden.reshape(GRID)
    assert not hidden[::2, ::2].any()
    assert hidden.sum() == 147


def test_grid_mask_above_three_quarters_keeps_to_the_upper_left_places() -> None:
    visible = ~sample_mask("grid", GRID, 180, 3).hidden.reshape(GRID)
    assert visible[::2, ::2].sum() == 16


def test_block_mask_is_made_of_large_areas() -> None:
    def borders(strategy: str) -> float:
        grids = [sample_mask(strategy, GRID, 98, seed).hidden.reshape(GRID) for seed in range(20)]
        return float(np.mean([(g[1:] != g[:-1]).sum() + (g[:, 1:] != g[:, :-1]).sum() for g in grids]))

    assert borders("block") < 0.35 * borders("random")


@pytest.mark.parametrize(
    ("ratio", "visible"),
    [("0.75", 49), ("0.8", 39), ("0.85", 29), ("0.9", 19), ("0.95", 9), ("0.4", 117), ("0.7", 58)],
)
def test_visible_counts_are_the_papers(ratio: str, visible: int) -> None:
    assert 196 - hidden_count(ratio, 196) == visible


def test_counts_are_exact_where_floats_lose_a_patch() -> None:
    assert int(100 * (1 - 0.9)) == 9, "the trap this guards against"
    assert 100 - hidden_count(0.9, 100) == 10


@pytest.mark.parametrize("ratio", ["0.0001", "0.9999"])
def test_a_ratio_leaves_one_patch_on_either_side(ratio: str) -> None:
    assert 1 <= hidden_count(ratio, 196) <= 195


#: Numbers that take minutes and gigabytes to write out.
HUGE = ("1e-999999999", "1e999999999", "1E-9_999_999", "1e-٩٩٩٩٩٩٩")


@pytest.mark.parametrize("ratio", ["0", "1", "-0.5", "1.5", "nan", "inf", "much", "", "1/0", *HUGE])
def test_an_impossible_ratio_is_refused_by_name(ratio: str) -> None:
    with pytest.raises(MaskError, match="ratio") as caught:
        hidden_count(ratio, 196)
    assert caught.value.field == "ratio"
    assert caught.value.hint


def test_ids_put_visible_patches_back_where_they_were() -> None:
    mask = sample_mask("random", GRID, 147, 1)
    shuffled = np.concatenate([mask.ids_keep, np.flatnonzero(mask.hidden)])
    assert (shuffled[mask.ids_restore] == np.arange(196)).all()
    assert (np.diff(mask.ids_keep) > 0).all()


def test_indices_are_hidden_as_listed() -> None:
    assert mask_from_indices([3, 0, 195], GRID).indices == [0, 3, 195]


@pytest.mark.parametrize("indices", [[], [196], [-1], [1, 1], list(range(196))])
def test_wrong_indices_are_refused(indices: list[int]) -> None:
    with pytest.raises(MaskError) as caught:
        mask_from_indices(indices, GRID)
    assert caught.value.field == "indices"


def test_a_drawing_hides_what_is_mostly_white() -> None:
    drawing = np.zeros((100, 130), dtype=np.uint8)
    drawing[:50] = 255
    mask = mask_from_drawing(drawing, (4, 5))
    assert mask.indices == list(range(10))


def test_a_patch_is_hidden_by_more_than_half_of_its_pixels_however_they_divide() -> None:
    drawing = np.zeros((8, 11), dtype=np.uint8)  # columns of 2, 3, 3 and 3 pixels
    drawing[:4, :1] = 255  # half of its patch
    drawing[:4, 5:7] = 255  # two thirds of its
    assert mask_from_drawing(drawing, (2, 4)).hidden.nonzero()[0].tolist() == [2]


def test_drawing_and_indices_agree_at_one_pixel_a_patch() -> None:
    wanted = sample_mask("random", GRID, 100, 5)
    drawn = mask_from_drawing(wanted.hidden.reshape(GRID).astype(np.uint8) * np.uint8(255), GRID)
    assert drawn.indices == wanted.indices


@pytest.mark.parametrize("drawing", [np.zeros((20, 20)), np.ones((20, 20)), np.ones((3, 20))])
def test_a_drawing_that_gives_no_mask_is_refused(drawing: np.ndarray) -> None:
    with pytest.raises(MaskError) as caught:
        mask_from_drawing(255 * drawing.astype(np.uint8), GRID)
    assert caught.value.field == "drawing"


@pytest.mark.parametrize(
    ("strategy", "count", "seed", "field"),
    [("spiral", 10, 0, "strategy"), ("random", 0, 0, "hidden_count"), ("random", 196, 0, "hidden_count"),
     ("random", 10, -1, "seed"), ("random", 10, 2**32, "seed")],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_by_name(strategy: str, count: int, seed: int, field: str) -> None:
    with pytest.raises(MaskError) as caught:
        sample_mask(strategy, GRID, count, seed)
    assert caught.value.field == field


def test_a_mask_tells_its_true_share() -> None:
    assert Mask((2, 2), np.array([True, False, False, False])).ratio == 0.25
