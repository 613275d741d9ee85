"""What threads hold together stays within the bound, and nobody is passed by."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from model import images
from model.budget import Budget
from model.errors import ImageError


def test_more_waits_until_there_is_room_and_one_alone_may_have_any_amount() -> None:
    budget, entered, leave = Budget(10), threading.Semaphore(0), threading.Event()

    def hold(amount: int) -> None:
        with budget.hold(amount):
            entered.release()
            assert leave.wait(20)

    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(hold, 25)]
        assert entered.acquire(timeout=20), "larger than all there is, and alone"
        done += [pool.submit(hold, 6), pool.submit(hold, 4)]
        assert not entered.acquire(timeout=0.1)
        leave.set()
        assert all(each.result(20) is None for each in done)
        assert budget._held == 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pictures_that_are_cut_broken_or_left_hold_nothing(kind: str) -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)).save(file, kind)
    with images.Picture(file.getvalue()) as picture:
        assert images._DECODING._held == 64 * 48
        picture.cut((0, 0, 48, 48), (16, 16))
    with pytest.raises(ImageError):
        images.load_square(file.getvalue()[:700], 16)
    with pytest.raises(ImageError):
        images.load_grey(file.getvalue()[:700])
    images.load_grey(file.getvalue())
    assert images._DECODING._held == 0
