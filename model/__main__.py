"""``python -m model VERB``: parse, call one function of a room, print. No logic lives here."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from model import __version__, weights
from model import verbs as pictures
from model.ablate import verbs as ablations
from model.errors import UnmaskError
from model.evaluate import verbs as evaluate
from model.pretrain import verbs as training


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 2 for a mistake the caller can correct, or 130 for Ctrl-C."""
    parser = _parser()
    given = parser.parse_args(arguments)
    verb: Callable[[argparse.Namespace], str | None] = given.verb
    try:
        if said := verb(given):
            print(said, flush=True)
    except BrokenPipeError:  # whoever reads has enough, as head has; nor can the rest be flushed at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped.", file=sys.stderr)
        return 130
    except UnmaskError as error:
        # A message that ends in another program's words may lack its full stop.
        said = str(error).removesuffix(".")
        print(f"{parser.prog}: {said}. {error.hint}", file=sys.stderr)
        return 2
    except OSError as error:  # of a path that nobody expected to be more than absent
        if error.filename is None:
            raise
        said = f"{error.filename!s:.200} cannot be used ({error.strerror})"
        print(f"{parser.prog}: {said}. Check the path, and who may read and write there.", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """Refuses an unknown option where it was given: with the verb's own usage, not the whole program's."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def] # as argparse declares it
        given, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return given, unknown


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="python -m model", description="Masked autoencoders: hide, repaint, train, measure."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    pictures.add(verbs)
    training.add(verbs)
    evaluate.add(verbs)
    ablations.add(verbs)
    weights.add(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
