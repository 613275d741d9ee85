"""A bound on what several threads hold at a time, given out in the order in which it was asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """So much of something and no more, except that one alone may have any amount.

    Args:
        most: What may be held at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._room = threading.Condition()
        self._turn = threading.Lock()  # without it a large one would wait for as long as small ones come

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Wait until there is room, and have it until the end of the block."""
        with self._turn, self._room:
            self._room.wait_for(lambda: not self._held or self._held + amount <= self._most)
            self._held += amount
        try:
            yield
        finally:
            with self._room:
                self._held -= amount
                self._room.notify()
