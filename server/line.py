"""Who is let in: a line bounded by count and by the time it is expected to take.

Knows nothing of threads or machines: whoever computes tells it how long a forward pass takes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count

from server.metrics import Metrics
from server.problems import OverloadedError

# Weight of the newest in the running means of seconds per pass and per picture: follows a change within some ten.
NEWEST = 0.2
# Of a picture that took less: one seen a moment ago is not decoded again, and tells nothing of the next.
QUICKER = 0.02


@dataclass(eq=False)
class Place:
    """A request's place in the line.

    Attributes:
        number: Places are counted as they are taken.
        owner: The request's id.
        passes: Forward passes it takes.
        decoding: Whether its picture is still to be decoded.
        patient: Whether it is one of many in a batch: nobody is refused for it.
    """

    number: int
    owner: str | None
    passes: int = 1
    decoding: bool = True
    patient: bool = False


@dataclass(frozen=True)
class Turn:
    """How it stands with the line for one request.

    Attributes:
        admitted: Requests in progress or waiting, its own included.
        before: Of these, how many were there first; None where it has no place, or not yet.
        wait_s: How long those and its own are expected to compute; all of them where it has no place.
    """

    admitted: int
    before: int | None
    wait_s: float


class Line:
    """Requests in progress or waiting. All methods but those that learn belong to the event loop.

    Args:
        max_waiting: Most requests admitted at a time.
        max_queue_s: Seconds of predicted wait from which no more requests are admitted.
        metrics: Where they are counted.
    """

    def __init__(self, *, max_waiting: int, max_queue_s: float, metrics: Metrics) -> None:
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._max_queue_s = max_queue_s
        self._places: dict[str, list[Place]] = {}  # by network
        self._pass_s: dict[str, float] = {}  # running mean of one, by network
        self._decode_s = 0.0  # of a picture, likewise
        self.workers = 1  # that compute at a time, each a job
        self._numbers = count()

    def check_room(self) -> None:
        """Refuse early, before a body is read.

        Raises:
            OverloadedError: When the line is full by count or by predicted time; where nobody waits, nobody
                is refused.
        """
        wait_s = self._wait_s(patient=False)
        if self._admitted and (self._admitted >= self._max_waiting or wait_s > self._max_queue_s):
            raise OverloadedError(retry_after_s=max(1, math.ceil(wait_s)))

    @contextmanager
    def admit(self, network: str, owner: str | None = None, *, patient: bool = False) -> Iterator[Place]:
        """Hold a place for as long as the request is in progress.

        Args:
            network: Which one it will need.
            owner: Id by which `turn` finds it.
            patient: It is one of many in a batch.

        Yields:
            The place, which counts as one forward pass until more is known.

        Raises:
            OverloadedError: As `check_room`.
        """
        self.check_room()
        place = Place(next(self._numbers), owner, patient=patient)
        self._places.setdefault(network, []).append(place)
        self._tell()
        try:
            yield place
        finally:
            self._places[network].remove(place)
            self._tell()

    def be_patient(self, place: Place) -> None:
        """Let a place wait in the line of batches, which nobody is refused for.

        Raises:
            OverloadedError: Half of all places do already: the rest is for those who come and go.
        """
        patient = sum(place.patient for place in chain(*self._places.values()))
        if patient and patient >= self._max_waiting // 2:
            raise OverloadedError(retry_after_s=max(1, math.ceil(self._wait_s())))
        place.patient = True

    def turn(self, owner: str | None) -> Turn:
        """How many requests and how much time are before a request, by the id it was admitted with."""
        found = (place.number for place in chain(*self._places.values()) if owner and place.owner == owner)
        mine = min(found, default=None)
        if mine is None:
            return Turn(self._admitted, None, self._wait_s())
        before = sum(place.number < mine for place in chain(*self._places.values()))
        return Turn(self._admitted, before, self._wait_s(mine))

    def _wait_s(self, last: float = math.inf, *, patient: bool = True) -> float:
        """How long the places up to a number will take, with or without those of batches.

        Pictures are decoded while the network computes: the slower of both decides.
        """
        pictures, computing_s = 0, 0.0
        for network, places in self._places.items():
            pass_s = self._pass_s.get(network, 0.0)
            for place in places:
                if place.number <= last and (patient or not place.patient):
                    pictures += place.decoding
                    computing_s += place.passes * pass_s
        return max(computing_s / self.workers, pictures * self._decode_s)

    def expected_s(self, network: str, passes: int) -> float:
        """How long so many forward passes will run, 0 where it is not known yet."""
        return passes * self._pass_s.get(network, 0.0)

    def learn(self, network: str, pass_s: float) -> None:
        """Take note of how long a forward pass took; from any one thread."""
        before = self._pass_s.get(network, pass_s)
        # A new dict instead of a change: the event loop may be reading the old one.
        self._pass_s = {**self._pass_s, network: (1 - NEWEST) * before + NEWEST * pass_s}

    def learn_decoding(self, picture_s: float) -> None:
        """Take note of how long a picture took, over the threads that decode; from any of them.

        By the picture, not by its pixels, which only its header tells: that is read when its turn has come.
        """
        before = self._decode_s or picture_s
        weight = NEWEST if picture_s > before else QUICKER
        self._decode_s = (1 - weight) * before + weight * picture_s  # two at once: one is lost, it is a mean

    @property
    def _admitted(self) -> int:
        return sum(map(len, self._places.values()))

    def _tell(self) -> None:
        self._metrics.admitted.set(self._admitted)
