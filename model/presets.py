"""TOML files that a verb takes by path or by the name of one that comes with the package."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from model.errors import RecipeError


def names(package: str, folder: str) -> list[str]:
    """Of all that come with a package, sorted.

    Args:
        package: Such as ``model.pretrain``.
        folder: Within it.
    """
    entries = (resources.files(package) / folder).iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def read(name_or_path: str, package: str, folder: str, field: str) -> dict[str, Any]:
    """Values of a file; one that is there goes before one of the same name that comes with the package.

    Args:
        name_or_path: What was asked for.
        package: As for ``names``.
        folder: As for ``names``.
        field: What errors call it: ``recipe``, ``table``.

    Raises:
        RecipeError: There is none, it cannot be read, or it is not TOML.
    """
    path = Path(name_or_path)
    try:
        if not path.is_file():
            path = Path(str(resources.files(package) / folder / f"{name_or_path}.toml"))
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(names(package, folder))
        what = f"there is no file or {field} called {name_or_path!r}; known are {known}"
        raise _unusable(field, what, f"Give one of these names, or the path of a {field}.") from error
    except OSError as error:
        what = f"{name_or_path} cannot be read ({error.strerror})"
        raise _unusable(field, what, "Check the path and who may read it.") from error
    except ValueError as error:  # also of a file that is no UTF-8
        what = f"{path.name} is not valid TOML: {error}"
        raise _unusable(field, what, f"Correct the {field} file.") from error


def _unusable(field: str, what: str, hint: str) -> RecipeError:
    return RecipeError(f"{field}: {what}.", code=field, hint=hint, field=field)
