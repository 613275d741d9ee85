"""What was made last is kept, and nothing else."""

from __future__ import annotations

import pytest

from model import Options, Reconstructor
from model.recent import Recent
from tests.pictures import encoded, photo


def test_the_least_recently_used_goes_first() -> None:
    recent: Recent[str] = Recent(2)
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name.upper()

    for name in ("a", "b", "a", "c", "a", "b"):
        assert recent.get(name, lambda name=name: make(name)) == name.upper()  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]


def test_what_fails_is_tried_again() -> None:
    recent: Recent[int] = Recent(2)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: 1 // 0)
    assert recent.get("a", lambda: 1) == 1


def test_a_photo_is_decoded_once_for_each_way_to_look_at_it(reconstructor: Reconstructor) -> None:
    picture, other = encoded(photo(80, 120)), encoded(photo(80, 120, seed=5))
    first = reconstructor.prepare(picture, Options(seed=1))
    assert reconstructor.prepare(picture, Options(seed=2, ratio="0.5")).pixels is first.pixels
    assert reconstructor.prepare(other, Options(seed=1)).pixels is not first.pixels
    assert reconstructor.prepare(picture, Options(seed=1, fit="whole")).grid != first.grid
    assert (reconstructor.prepare(picture, Options(seed=1, crop="0,0,40")).pixels != first.pixels).any()
    whole = Options(seed=1, fit="whole", grid="5x5")
    assert reconstructor.prepare(picture, whole).grid == (5, 5)
