"""Any picture, several masks, and every option a stranger may send."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model import PANELS, Options, Reconstructor, UnmaskError
from model.cover import Merged, complementary, ensemble
from model.errors import MaskError
from model.masking import MAX_SEED, Mask, sample_mask
from model.placement import MAX_STRETCH, best_grid, place
from tests.pictures import encoded, photo

PICTURE = encoded(photo())  # 96 x 80


# --- any picture ------------------------------------------------------------------------------------------


def test_the_centre_square_is_looked_at_unless_another_is_asked_for(reconstructor: Reconstructor) -> None:
    answer = reconstructor(PICTURE, Options(seed=1)).to_dict(())
    assert answer["placement"] == {
        "fit": "square", "left": 8, "top": 0, "width": 80, "height": 80,
        "original_width": 96, "original_height": 80,
    }  # fmt: skip
    upright, _ = place((80, 96), (4, 4), fit="square", crop=None, grid=None)
    assert upright.box == (0, 8, 80, 88)
    same = reconstructor(PICTURE, Options(seed=1, crop="8,0,80"))
    assert same.png("original") != reconstructor(PICTURE, Options(seed=1, crop="0,0,80")).png("original")
    assert np.array_equal(same.panel("pasted"), reconstructor(PICTURE, Options(seed=1)).panel("pasted"))


def test_a_crop_shows_exactly_those_pixels(reconstructor: Reconstructor) -> None:
    result = reconstructor(PICTURE, Options(seed=1, crop=(20, 9, 64)))
    assert np.array_equal(result.panel("original"), photo()[9:73, 20:84])


def test_a_whole_picture_keeps_its_aspect_and_all_of_its_pixels(reconstructor: Reconstructor) -> None:
    result = reconstructor(encoded(photo(160, 80)), Options(seed=1, fit="whole"))
    answer = result.to_dict(PANELS)
    rows, columns = answer["grid"]
    assert (rows, columns) == (4, 8), "nothing smaller than 4 patches a side"
    assert answer["placement"]["width"] == 160
    assert answer["placement"]["height"] == 80
    assert result.panel("pasted").shape == (16 * rows, 16 * columns, 3)
    assert len(answer["hidden"]) == 24
    assert place((160, 80), (14, 14), fit="whole", crop=None, grid=None)[1] == (10, 20), "as many as its own"


def test_a_grid_of_another_aspect_cuts_instead_of_squashing(reconstructor: Reconstructor) -> None:
    answer = reconstructor(PICTURE, Options(seed=1, fit="whole", grid="5x5")).to_dict(())
    assert answer["grid"] == [5, 5]
    assert {key: answer["placement"][key] for key in ("left", "top", "width", "height")} == {
        "left": 8, "top": 0, "width": 80, "height": 80,
    }  # fmt: skip


def test_the_models_own_grid_asked_for_is_the_plain_way_to_the_bit(reconstructor: Reconstructor) -> None:
    square = encoded(photo(80, 80))
    plain = reconstructor(square, Options(seed=1))
    whole = reconstructor(square, Options(seed=1, fit="whole", grid="4x4"))
    assert np.array_equal(plain.prediction.pixels, whole.prediction.pixels)


@given(aspect=st.floats(0.101, 9.9))
def test_the_best_grid_stretches_less_than_is_seen_and_has_about_as_many_patches(aspect: float) -> None:
    rows, columns = best_grid(aspect, 196)
    assert 1 / MAX_STRETCH <= columns / rows / aspect <= MAX_STRETCH
    assert 0.65 <= rows * columns / 196 <= 1.5


@given(size=st.tuples(st.integers(8, 3000), st.integers(8, 3000)), grid=st.tuples(*[st.integers(4, 40)] * 2))
def test_a_box_lies_inside_the_picture_and_has_the_grids_aspect(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    placement, _ = place(size, (14, 14), fit="whole", crop=None, grid=grid)
    left, top, right, bottom = placement.box
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    one_pixel = 1 / min(right - left, bottom - top)
    assert (
        abs(np.log((right - left) / (bottom - top) / (grid[1] / grid[0]))) <= np.log(MAX_STRETCH) + one_pixel
    )


# --- several masks ----------------------------------------------------------------------------------------


def _times(masks: tuple[Mask, ...]) -> NDArray[np.int64]:
    """How often each patch is hidden."""
    times: NDArray[np.int64] = np.stack([mask.hidden for mask in masks]).astype(np.int64).sum(axis=0)
    return times


@pytest.mark.parametrize("strategy", ["random", "block", "grid"])
@pytest.mark.parametrize("grid", [(14, 14), (9, 17), (4, 5)])
def test_complementary_masks_hide_every_patch_exactly_once(strategy: str, grid: tuple[int, int]) -> None:
    times = _times(complementary(strategy, grid, None, seed=3))
    assert (times == 1).all()


@given(count=st.integers(7, 195), seed=st.integers(0, 2**32 - 1))
def test_complementary_masks_of_any_count_leave_no_patch_out(count: int, seed: int) -> None:
    masks = complementary("random", (14, 14), count, seed)
    times = _times(masks)
    assert all(mask.hidden_count == count for mask in masks)
    assert times.min() >= 1
    assert times.max() <= 2


def test_complementary_grids_are_the_four_shifts_of_the_grid() -> None:
    shifts = [mask.hidden.reshape(14, 14) for mask in complementary("grid", (14, 14), None, seed=0)]
    assert {(int(np.argwhere(one)[0][0]), int(np.argwhere(one)[0][1])) for one in shifts} == {
        (0, 0), (0, 1), (1, 0), (1, 1),
    }  # fmt: skip


def test_complementary_blocks_are_coherent() -> None:
    hidden = complementary("block", (14, 14), None, seed=5)[0].hidden.reshape(14, 14)
    beside = hidden[:, :-1] & hidden[:, 1:]
    assert beside.sum() > 0.7 * hidden.sum()


def test_too_many_masks_are_refused_with_the_smallest_count() -> None:
    with pytest.raises(MaskError, match="limit is 32") as caught:
        complementary("random", (14, 14), 2, seed=0)
    assert "at least 7 patches" in caught.value.hint


def test_every_mask_of_an_ensemble_can_be_had_alone() -> None:
    masks = ensemble("random", (14, 14), 147, seed=2**32 - 1, samples=2)
    assert masks[1].indices == sample_mask("random", (14, 14), 147, 0).indices


def test_complete_predicts_every_patch_from_the_others(reconstructor: Reconstructor) -> None:
    """Its picture is what the single masks show in their hidden patches, put together."""
    result = reconstructor(PICTURE, Options(seed=1, cover="complete"))
    assert result.job.hidden.all()
    assert len(result.job.masks) == 4
    for mask in result.job.masks:
        single = reconstructor(PICTURE, Options(strategy="indices", indices=tuple(mask.indices)))
        where = mask.hidden.reshape(4, 4).repeat(16, 0).repeat(16, 1)
        assert np.array_equal(result.prediction.pixels[where], single.prediction.pixels[where])
    assert np.array_equal(result.panel("pasted"), result.panel("reconstruction"))


def test_figures_of_complete_are_those_of_the_whole_picture(reconstructor: Reconstructor) -> None:
    result = reconstructor(PICTURE, Options(seed=1, cover="complete", interpolation=True))
    answer = result.to_dict(())
    error = np.abs(result.prediction.pixels - result.compared)
    assert answer["metrics"]["colour_error_percent"] == pytest.approx(100 * error.mean(), abs=1e-4)
    assert np.mean(answer["patches"]["error_percent"]) == pytest.approx(100 * error.mean(), abs=1e-2)
    assert answer["patches"]["spread_percent"] is None
    assert 0 < answer["metrics"]["plain_fill"]["mse"] < 1
    assert answer["metrics"]["interpolation"]["mse"] < answer["metrics"]["plain_fill"]["mse"]


def test_a_drawn_mask_is_completed_by_its_opposite(reconstructor: Reconstructor) -> None:
    result = reconstructor(PICTURE, Options(strategy="indices", indices=(0, 1, 2), cover="complete"))
    assert [mask.hidden_count for mask in result.job.masks] == [3, 13]
    assert result.to_dict(())["hidden"] == [0, 1, 2]
    single = reconstructor(PICTURE, Options(strategy="indices", indices=(0, 1, 2)))
    assert np.array_equal(result.prediction.pixels[:16, :48], single.prediction.pixels[:16, :48])


def test_an_ensemble_is_the_mean_of_its_seeds_and_tells_their_spread(reconstructor: Reconstructor) -> None:
    result = reconstructor(PICTURE, Options(seed=5, cover="ensemble", samples=3))
    alone = [reconstructor(PICTURE, Options(seed=seed)) for seed in (5, 6, 7)]
    hidden = np.stack([one.job.mask.hidden for one in alone])
    patches = np.stack([one.prediction.pixels.reshape(4, 16, 4, 16, 3) for one in alone])
    mean = result.prediction.pixels.reshape(4, 16, 4, 16, 3)
    answer = result.to_dict((*PANELS, "uncertainty"))
    assert answer["samples"] == 3
    for patch in range(16):
        row, column = divmod(patch, 4)
        own = patches[hidden[:, patch], row, :, column]
        told = answer["patches"]["spread_percent"][patch]
        if len(own):
            np.testing.assert_allclose(mean[row, :, column], own.mean(axis=0), atol=1e-6)
        if len(own) < 2:
            assert told is None
        else:
            assert told == pytest.approx(100 * np.sqrt(own.var(axis=0, ddof=1).mean()), abs=2e-3)


def test_patches_that_no_seed_hid_are_left_as_they_are(reconstructor: Reconstructor) -> None:
    result = reconstructor(PICTURE, Options(seed=5, hidden_count=1, cover="ensemble", samples=2))
    seen = ~result.job.hidden.reshape(4, 4).repeat(16, 0).repeat(16, 1)
    assert seen.any()
    assert np.array_equal(result.panel("pasted")[seen], result.panel("original")[seen])
    assert result.panel("uncertainty").shape == (64, 64, 3), "two are enough for a spread"


@pytest.mark.parametrize("cover", ["single", "complete"])
def test_uncertainty_needs_an_ensemble_and_says_so(reconstructor: Reconstructor, cover: str) -> None:
    with pytest.raises(MaskError, match=cover) as caught:
        reconstructor(PICTURE, Options(cover=cover)).panel("uncertainty")
    assert "ensemble" in caught.value.hint


def test_merging_equal_predictions_changes_nothing_and_spreads_nothing() -> None:
    picture = photo(32, 32).astype(np.float32) / np.float32(255)
    merged = Merged()
    for _ in range(3):
        merged.add(picture, Mask((2, 2), np.array([True, True, False, True])))
    assert np.array_equal(merged.pixels(), picture)
    spread = merged.spread()
    assert np.isnan(spread[1, 0])
    assert np.nanmax(spread) == 0


def test_a_patch_that_was_never_hidden_shows_the_mean_of_all_predictions() -> None:
    pictures = [photo(32, 32, seed).astype(np.float32) / np.float32(255) for seed in range(3)]
    merged = Merged()
    for picture in pictures:
        merged.add(picture, Mask((2, 2), np.array([True, True, False, True])))
    np.testing.assert_allclose(merged.pixels(), np.mean(pictures, axis=0), atol=1e-6)


# --- positions --------------------------------------------------------------------------------------------


def test_positions_of_hidden_patches_alone_change_the_picture_and_are_recorded(
    reconstructor: Reconstructor,
) -> None:
    both, alone = (reconstructor(PICTURE, Options(seed=1, positions=one)) for one in ("both", "hidden_only"))
    assert both.to_dict(())["positions"] == "both"
    assert alone.to_dict(())["positions"] == "hidden_only"
    assert not np.array_equal(both.prediction.pixels, alone.prediction.pixels)


# --- strangers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (Options(fit="round"), "fit"),
        (Options(cover="double"), "cover"),
        (Options(positions="none"), "positions"),
        (Options(crop="1,2"), "crop"),
        (Options(crop="-1,0,20"), "crop"),
        (Options(crop="0,0,81"), "crop"),
        (Options(crop="0,0,7"), "crop"),
        (Options(crop="٣,0,20"), "crop"),
        (Options(crop="0,0,20", fit="whole"), "crop"),
        (Options(grid="5x5"), "grid"),
        (Options(grid="3x5", fit="whole"), "grid"),
        (Options(grid="5x41", fit="whole"), "grid"),
        (Options(grid="5", fit="whole"), "grid"),
        (Options(samples=4), "samples"),
        (Options(samples=1, cover="ensemble"), "samples"),
        (Options(samples=33, cover="ensemble"), "samples"),
        (Options(strategy="indices", indices=(1,), cover="ensemble"), "cover"),
        (Options(strategy="spiral", cover="complete"), "strategy"),
        (Options(hidden_count=0, cover="complete"), "hidden_count"),
        (Options(hidden_count=16, cover="complete"), "hidden_count"),
        (Options(seed=-1, cover="ensemble"), "seed"),
        (Options(seed=2**32, cover="ensemble"), "seed"),
    ],
)
def test_options_out_of_range_are_refused_by_field(
    reconstructor: Reconstructor, options: Options, field: str
) -> None:
    with pytest.raises(UnmaskError) as caught:
        reconstructor.prepare(PICTURE, options)
    assert caught.value.field == field
    assert caught.value.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ratio", "2"), ("ratio", 0), ("ratio", "x"), ("seed", -1), ("seed", 2**32), ("strategy", "spiral"),
        ("crop", "1,2"), ("grid", "3x5"),
    ],
)  # fmt: skip
def test_what_no_grid_could_mend_is_refused_before_the_picture_is_opened(field: str, value: Any) -> None:
    with pytest.raises(MaskError) as caught:
        Options(**{field: value}, fit="whole" if field == "grid" else "square").check()
    assert caught.value.field == field


def test_whole_numbers_of_numpy_become_plain_ones() -> None:
    hidden = np.arange(16).reshape(4, 4) % 3 == 0
    given = Options(strategy="indices", indices=np.flatnonzero(hidden))
    assert given == Options(strategy="indices", indices=tuple(range(0, 16, 3)))
    (mask,), _ = given.masks((4, 4))
    assert np.array_equal(mask.hidden, hidden.reshape(-1))
    assert json.dumps(Options(seed=cast("int", np.int64(3))).masks((4, 4))[1]) == "3"
    whole: Any = np.array([4, 6])
    assert Options(fit="whole", grid=whole) == Options(fit="whole", grid=(4, 6))


def test_a_seed_is_drawn_from_all_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.randbelow", lambda bound: bound - 1)
    assert Options().masks((4, 4))[1] == MAX_SEED


def test_a_crop_may_be_a_list_as_json_has_it(reconstructor: Reconstructor) -> None:
    listed: Any = [20, 9, 64]
    assert reconstructor.prepare(PICTURE, Options(seed=1, crop=listed)).placement.box == (20, 9, 84, 73)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("indices", [1.5, 2]),
        ("indices", ["1", "2"]),
        ("indices", 3),
        ("indices", np.eye(4)),
        ("seed", 1.5),
        ("samples", "4"),
        ("hidden_count", 3.0),
        ("crop", (0, 0, 20.0)),
        ("grid", 5),
    ],
)
def test_what_is_no_whole_number_is_refused_as_the_callers_mistake(field: str, value: Any) -> None:
    with pytest.raises(MaskError, match="whole number") as caught:
        Options(**{field: value})
    assert caught.value.field == field
    assert caught.value.hint


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fit=st.sampled_from(["square", "whole", "WHOLE"]),
    crop=st.none() | st.text(max_size=12) | st.from_regex(r"\d{1,3},\d{1,3},\d{1,3}", fullmatch=True),
    grid=st.none() | st.text(max_size=9) | st.from_regex(r"[1-9]x[1-9]", fullmatch=True),
    cover=st.sampled_from(["single", "complete", "ensemble", ""]),
    samples=st.none() | st.integers(-1, 5),
    positions=st.sampled_from(["both", "hidden_only", "x"]),
    ratio=st.none() | st.sampled_from(["0.01", "0.3", "0.99", "nan", "1e9", "-1"]),
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
)
def test_any_request_is_answered_or_refused_with_a_field(
    reconstructor: Reconstructor,
    fit: str,
    crop: str | None,
    grid: str | None,
    cover: str,
    samples: int | None,
    positions: str,
    ratio: str | None,
    size: tuple[int, int],
) -> None:
    options = Options(
        fit=fit, crop=crop, grid=grid, cover=cover, samples=samples, positions=positions, ratio=ratio, seed=1
    )
    refusal: UnmaskError | None = None
    try:
        result = reconstructor(encoded(photo(*size)), options)
    except UnmaskError as error:
        refusal = error
    if refusal:
        assert refusal.field
        assert refusal.hint
        return
    assert np.isfinite(result.prediction.pixels).all()
    assert all(np.isfinite(result.metrics[key]) for key in ("mse", "nmse", "psnr_db", "ssim"))
