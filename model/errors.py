"""The errors a caller can act on.

    UnmaskError
    |- ImageError       the picture cannot be used (unreadable, too large, wrong shape)
    |- MaskError        the mask cannot be made (strategy, ratio, count, seed, indices, drawing)
    |- CheckpointError  the weight file cannot be trusted or used
    |- RecipeError      a training recipe is wrong
    `- DataError        training or evaluation photos are missing or broken

Everything else that is raised is our own mistake and flies to the top.
"""

from __future__ import annotations

from typing import Any


class UnmaskError(Exception):
    """A mistake the caller can correct.

    Args:
        message: What is wrong, naming the value and the limit.
        code: Stable slug for programs, e.g. ``mask-ratio``.
        hint: What to do about it, one sentence.
        field: The option or request field at fault, if there is one.
    """

    def __init__(self, message: str, *, code: str, hint: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.field = field

    def __str__(self) -> str:
        """The message alone; ``hint`` is shown beside it by whoever reports."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without its constructor, whose arguments differ: errors cross from process to process."""
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[UnmaskError], arguments: tuple[Any, ...]) -> UnmaskError:
    return kind.__new__(kind, *arguments)


class ImageError(UnmaskError):
    """Raised by ``model.images`` for a picture that cannot be read or used."""


class MaskError(UnmaskError):
    """Raised by ``model.masking`` for options that give no valid mask."""


class CheckpointError(UnmaskError):
    """Raised by ``model.checkpoints`` for a weight file that cannot be used."""


class RecipeError(UnmaskError):
    """Raised by ``model.pretrain.recipe`` for a recipe that cannot be run."""


class DataError(UnmaskError):
    """Raised where photos for training or evaluation are missing or broken."""
