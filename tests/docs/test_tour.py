"""The tour runs, and what is stored beneath its cells is what comes out of them today.

After a change it is run again and stored by the command in CONTRIBUTING.md.
"""

import ast
import base64
import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FILE = Path(__file__).resolve().parents[2] / "docs" / "tour.ipynb"
TOUR = json.loads(FILE.read_text(encoding="utf-8"))
CELLS = [cell for cell in TOUR["cells"] if cell["cell_type"] == "code"]
FIGURE = re.compile(r"\d+\.\d+")


def run(cell: dict[str, Any], names: dict[str, Any]) -> tuple[str, object]:
    """Run a cell as a notebook does: what it prints, and what its last line is worth."""
    code = ast.parse("".join(cell["source"]))
    end = code.body[-1]
    last = ast.Expression(end.value) if isinstance(end, ast.Expr) else None
    if last:
        code.body.pop()
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, cell["id"], "exec"), names)
        worth = eval(compile(last, cell["id"], "eval"), names) if last else None
    return printed.getvalue(), worth


def stored(cell: dict[str, Any], kind: str) -> str:
    """What is stored beneath a cell: ``stdout``, or what its last line is worth as a MIME type."""
    printed = [output["text"] for output in cell["outputs"] if output.get("name") == kind]
    shown = [output["data"].get(kind, "") for output in cell["outputs"] if "data" in output]
    return "".join("".join(one) for one in printed + shown)


def same(said: str, told: str) -> bool:
    """The same words and whole numbers; figures may differ as machines do."""
    figures = [[float(figure) for figure in FIGURE.findall(text)] for text in (said, told)]
    return FIGURE.sub("#", said) == FIGURE.sub("#", told) and figures[0] == pytest.approx(
        figures[1], rel=0.02, abs=0.02
    )


@pytest.mark.slow
def test_every_cell_makes_what_is_stored_beneath_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.loading.has_gpu", lambda: False)  # what is stored was made without one
    names: dict[str, Any] = {}
    for cell in CELLS:
        printed, worth = run(cell, names)
        assert same(printed, stored(cell, "stdout")), f"{cell['id']} prints\n{printed}"
        if worth is None:
            assert not stored(cell, "text/plain"), cell["id"]
            continue
        assert same(repr(worth), stored(cell, "text/plain")), f"{cell['id']} is worth {worth!r}"
        picture = getattr(worth, "_repr_jpeg_", bytes)()
        before = base64.b64decode(stored(cell, "image/jpeg"))
        assert bool(picture) == bool(before), cell["id"]
        if picture:
            now, then = (np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in (picture, before))
            assert now.shape == then.shape
            changed = (np.abs(now - then) > 24).mean()  # rounding, and another JPEG encoder, stay below
            assert changed < 0.001, f"{cell['id']} shows another picture than the stored one"


def test_it_was_stored_after_one_run_from_top_to_bottom_without_a_fault() -> None:
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "execute_result"}
    assert {output["name"] for output in outputs if "name" in output} == {"stdout"}, "no warnings"


def test_it_is_small_and_tells_nothing_of_the_machine_it_ran_on() -> None:
    assert FILE.stat().st_size < 400_000
    assert not any(cell["metadata"] for cell in TOUR["cells"])
    told = re.sub(r'"image/jpeg": "[^"]*"', "", FILE.read_text(encoding="utf-8"))
    assert not re.search(r"/(home|root|tmp|work|Users|opt|mnt)/|site-packages| at 0x", told)
