"""The frame holds: the lock, the wheel, the Dockerfile, and what `import model` costs."""

import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import model
from model.proof import Proof

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DECLARED = [
    Requirement(text) for text in (*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"])
]


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_the_version_is_the_same_wherever_it_stands() -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert cited
    assert PROJECT["project"]["version"] == cited[1] == model.__version__


def test_the_lock_holds_no_address() -> None:
    assert "://" not in LOCK
    assert "--index" not in LOCK
    assert "--find-links" not in LOCK


def test_every_locked_package_has_a_hash() -> None:
    entries = re.split(r"^(?=\S)", LOCK, flags=re.MULTILINE)[1:]
    assert entries
    assert all("==" in entry and "--hash=sha256:" in entry for entry in entries)


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda requirement: requirement.name)
def test_the_lock_fits_what_is_declared(requirement: Requirement) -> None:
    pinned = re.search(rf"^{re.escape(canonicalize_name(requirement.name))}==([^\s;]+)", LOCK, re.MULTILINE)
    assert pinned, f"{requirement.name} is not locked: run `make lock`"
    assert requirement.specifier.contains(pinned[1], prereleases=True), "the lock is stale: run `make lock`"


def test_nothing_that_is_installed_with_the_library_is_asked_for_in_one_version_alone() -> None:
    needed = map(Requirement, PROJECT["project"]["dependencies"])
    assert [str(each) for each in needed if any(part.operator == "==" for part in each.specifier)] == []


def test_importing_model_loads_no_torch() -> None:
    heavy = python("import model, sys; print(sorted({'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules)))")
    assert "torch" not in heavy
    assert "timm" not in heavy


def test_every_exported_name_is_there_and_no_other() -> None:
    assert [name for name in model.__all__ if getattr(model, name, None) is None] == []
    assert sorted(name for names in model._HOMES.values() for name in names) == sorted(model.__all__)


@pytest.mark.slow
def test_the_wheel_installs_exactly_three_packages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"model", "server", "ui"}
    for expected in (
        "model/shipped/mini.safetensors",
        "model/pretrain/recipes/small.toml",
        "model/py.typed",
        "model/samples/cat.jpg",
        "model/samples/.thumbs/cat.webp",
        "server/main.py",
    ):
        assert expected in names
    assert not any("__pycache__" in name or name.endswith(".tar") for name in names)


def test_the_image_runs_as_a_user_without_rights_and_says_how_it_is() -> None:
    assert re.search(r"^USER [1-9]\d*$", DOCKERFILE, re.MULTILINE)
    assert re.search(r'^HEALTHCHECK .*\\\n  CMD \["python"', DOCKERFILE, re.MULTILINE)
    assert DOCKERFILE.rstrip().splitlines()[-1] == 'CMD ["python", "-m", "server"]'


def test_the_image_installs_from_the_one_lock_and_checks_hashes() -> None:
    assert "--require-hashes --constraint requirements.lock --requirement pyproject.toml" in DOCKERFILE
    assert "--group" not in DOCKERFILE  # no development tools


def test_everything_the_image_copies_is_there_and_reaches_the_builder() -> None:
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert source in let_through


def test_slim_leaves_out_torch_and_serves_what_is_proved() -> None:
    assert re.search(r"printf 'torch\\ntorchvision\\ntimm\\n' > without.txt", DOCKERFILE)
    assert re.search(r"^FROM runtime AS slim$\n^COPY --from=slim-build ", DOCKERFILE, re.MULTILINE)
    for weights in (ROOT / "weights").glob("*.safetensors"):
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        proof = Proof.read(weights.with_name(f"{weights.stem}.proof.npz"), digest)
        assert proof, f"run: python -m model prove {weights.relative_to(ROOT)}"


def test_make_and_image_use_the_same_uv() -> None:
    makefile = (ROOT / "Makefile").read_text()
    versions = {
        *re.findall(r"uv==([\d.]+)", DOCKERFILE),
        *re.findall(r"^UV_VERSION := (\S+)$", makefile, re.MULTILINE),
    }
    assert len(versions) == 1


def test_make_alone_lists_the_targets() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in (
        "serve",
        "test",
        "test-fast",
        "check",
        "fix",
        "lock",
        "train",
        "evaluate",
        "image",
        "clean",
    ):
        assert re.search(rf"^  make {target} ", listed, re.MULTILINE), target


def test_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]\n" in (ROOT / "CHANGELOG.md").read_text()
