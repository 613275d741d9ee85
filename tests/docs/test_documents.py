"""What the documents print is true: their blocks run, their links lead somewhere, their names exist.

How a fenced block of a document is checked:

- `python`: run as it stands, in a folder that looks like a fresh checkout.
- `bash`, every line a `make` call: `make --dry-run` must know the targets; a reader of this result ran them.
- `bash`, every line a `docker` call: its flags must fit the Dockerfile.
- `bash`, anything else: run as it stands; only http://127.0.0.1:7860 becomes the address of a started server.

Blocks of other languages are pictures, not programs.
"""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
PRINTED_ADDRESS = "http://127.0.0.1:7860"
KNOWN_RUN_FLAGS = {"--rm", "-p", "--read-only", "--tmpfs", "--cap-drop", "--security-opt"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each shell line, comments gone and continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    @property
    def kind(self) -> str:
        """How it is checked: python, make, docker or bash."""
        if self.language != "bash":
            return self.language
        programs = {words[0] for words in self.commands}
        if programs & {"make", "docker"}:
            assert len(programs) == 1, (
                f"{self.document}:{self.line}: keep {sorted(programs)} in blocks of their own"
            )
            return programs.pop()
        return "bash"


def blocks(*kinds: str) -> list[object]:
    """Return the blocks of these kinds as test parameters, named by place; of those that do the same, the first."""
    found: list[object] = []
    known: list[object] = []
    for path in DOCUMENTS:
        text = path.read_text()
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            block = Block(str(path.relative_to(ROOT)), line, match[1], match[2])
            does = block.commands if block.kind != "python" else block.text
            if block.kind in kinds and does not in known:
                known.append(does)
                found.append(pytest.param(block, id=f"{block.document}:{line}"))
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder that looks like a checkout, so that what a block writes does not land in ours."""
    for name in ("model", "server", "ui", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_runs_as_printed(block: Block, checkout: Path) -> None:
    run([sys.executable, "-c", block.text], checkout)


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("bash"))
def test_a_shell_block_runs_as_printed(block: Block, checkout: Path, request: pytest.FixtureRequest) -> None:
    text = block.text
    if PRINTED_ADDRESS in text:
        text = text.replace(PRINTED_ADDRESS, request.getfixturevalue("server_url"))
    before = set(checkout.iterdir())
    run(["bash", "-euo", "pipefail", "-c", text], checkout)
    for path in set(checkout.iterdir()) - before:
        assert path.is_dir() or path.stat().st_size > 0, f"{path.name} is empty"


@pytest.mark.parametrize("block", blocks("make"))
def test_make_knows_every_printed_target(block: Block) -> None:
    for words in block.commands:
        run(["make", "--dry-run", *words[1:]], ROOT)


@pytest.mark.parametrize("block", blocks("docker"))
def test_docker_commands_fit_the_dockerfile(block: Block) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for _, verb, *words in block.commands:
        if verb == "build":
            assert words == ["-t", "unmask", "."]
            continue
        assert verb == "run"
        assert words[-1] == "unmask", "the image that the line before it builds"
        assert {word for word in words if word.startswith("-")} <= KNOWN_RUN_FLAGS
        assert f"EXPOSE {words[words.index('-p') + 1].split(':')[1]}\n" in dockerfile
        if "--read-only" in words:
            assert words[words.index("--tmpfs") + 1] == "/tmp"  # the one place where the service writes


def test_every_document_block_has_a_language() -> None:
    for path in DOCUMENTS:
        fences = re.findall(r"^```(\w*)$", path.read_text(), re.MULTILINE)
        assert all(fences[::2]), f"{path.name}: a block without a language is neither run nor shown well"


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, ROOT / "docs" / "tour.ipynb"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_relative_link_leads_to_a_file(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


# The change log also names settings that are gone.
@pytest.mark.parametrize(
    "path",
    [one for one in DOCUMENTS if one.name != "CHANGELOG.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_named_setting_exists(path: Path) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", path.read_text())) <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_named_source_file_exists(path: Path) -> None:
    for name in re.findall(r"`((?:model|server|ui|docs|tests|weights)/[\w./-]+\.\w+)`", path.read_text()):
        assert (ROOT / name).exists(), f"{path.name} names {name}"
