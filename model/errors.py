"""The errors a caller can act on.

    UnmaskError
    |- ImageError       the picture cannot be used (unreadable, too large, wrong shape)
    |- MaskError        the mask cannot be made or shown (strategy, ratio, count, seed, indices, drawing, view)
    |- CheckpointError  the weights cannot be trusted or used, or not on this device
    |- RecipeError      a recipe is wrong
    `- DataError        training or evaluation photos are missing or broken

Everything else that is raised is our own mistake and propagates to the top.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


class UnmaskError(Exception):
    """A mistake the caller can correct.

    Args:
        message: What is wrong, naming the value and the limit; all of ``str(error)``.
        code: Stable slug for programs, e.g. ``mask-ratio``.
        hint: What to do about it, one sentence; whoever reports shows it beside the message.
        field: The option or request field at fault, if there is one.
    """

    def __init__(self, message: str, *, code: str, hint: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without its constructor, whose arguments differ: errors cross from process to process."""
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[UnmaskError], arguments: tuple[Any, ...]) -> UnmaskError:
    return kind.__new__(kind, *arguments)


class ImageError(UnmaskError):
    """The picture cannot be used: unreadable, too large, of a wrong shape."""


class MaskError(UnmaskError):
    """The options give no valid mask, or nothing that can be shown of it."""


class CheckpointError(UnmaskError):
    """The weights cannot be trusted, read or written, or not run on this device."""


class RecipeError(UnmaskError):
    """A recipe, of training, evaluation or an ablation, cannot be run."""


class DataError(UnmaskError):
    """Photos for training or evaluation are missing or broken."""


def first_line(error: BaseException) -> str:
    """What an error of somebody else's code says, in one line of at most 160 characters; else its kind.

    Where in its source a C++ library found it (``decode_jpeg, /build/decode_jpeg.cpp:171, ``) tells nobody anything.
    """
    line = re.sub(r"^(\w+, )?\S+\.(cpp|cc|cu|h):\d+, ", "", next(iter(str(error).splitlines()), ""))
    return line[:160] or type(error).__name__


def listed(names: Sequence[str], most: int) -> str:
    """The first of some names and how many more there are, for a message; ``none`` of none."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def unwritten(what: str) -> CheckpointError:
    """The refusal of a training run that cannot write: a sentence on which file and why, and how to go on."""
    return CheckpointError(
        f"{what} The state before it is intact.",
        code="state-write",
        hint="Make room, then go on with --resume.",
    )
