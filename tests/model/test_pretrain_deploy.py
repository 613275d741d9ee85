"""The files that start a training run on a cluster: well-formed, and their command lines are ones we know."""

from __future__ import annotations

import os
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.__main__ import _parser
from model.pretrain.recipe import load_recipe

TRAINING = Path(__file__).parents[2] / "deploy" / "training"


def _of_ours(words: list[str]) -> Any:
    """The part of a torchrun line that is ours, understood by our own parser."""
    start = next(n for n, pair in enumerate(pairwise(words)) if pair == ("-m", "model"))
    return _parser().parse_args(words[start + 2 :])


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """What Slurm tells a job, and stand-ins for its programs: ``srun`` prints its words, one a line."""
    for name, does in (
        ("srun", r"printf '%s\n' srun $* >> $SAID"),
        ("scontrol", "echo $* >> $SAID; echo node-a"),
    ):
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\n{does}\n")
        program.chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(tmp_path / "said"), "OUT": "/scratch/run",
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "64", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip


def test_the_slurm_file_starts_a_run_that_goes_on_when_started_anew(slurm: dict[str, str]) -> None:
    script = TRAINING / "slurm.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    environment = {**slurm, "DATA": "/data/a-{0..9}.tar /data/b.tar", "VAL": "/data/c.tar /data/d.tar"}
    subprocess.run(["bash", script], env=environment, check=True, timeout=30)
    words = Path(slurm["SAID"]).read_text().split()
    assert "hostnames" in words
    for pair in (("--rdzv-endpoint", "node-a:29500"), ("--nnodes", "2"), ("--nproc-per-node", "4")):
        assert words[words.index(pair[0]) + 1] == pair[1]
    given = _of_ours(words)
    assert given.data == ["/data/a-{0..9}.tar", "/data/b.tar"]
    assert given.val == ["/data/c.tar", "/data/d.tar"]
    assert (given.out, given.workers, given.auto_resume) == (Path("/scratch/run"), 16, True)
    assert load_recipe(given.recipe).size == "vit_base"


def test_the_slurm_file_says_what_it_needs(slurm: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", TRAINING / "slurm.sbatch"], env=slurm, capture_output=True, timeout=30, check=False
    )
    assert done.returncode != 0
    assert b"DATA" in done.stderr


def test_the_kubernetes_file_names_one_job_and_its_hosts() -> None:
    service, job = yaml.safe_load_all((TRAINING / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    assert service["spec"]["clusterIP"] == "None"
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    (container,) = pod["containers"]
    words = [word for part in container["command"] for word in part.split("=", 1)]
    assert (
        words[words.index("--nnodes") + 1]
        == str(job["spec"]["parallelism"])
        == str(job["spec"]["completions"])
    )
    assert (
        int(words[words.index("--nproc-per-node") + 1]) == container["resources"]["limits"]["nvidia.com/gpu"]
    )
    host, port = words[words.index("--rdzv-endpoint") + 1].split(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(port) == service["spec"]["ports"][0]["port"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    given = _of_ours(words)
    assert str(given.out.parent) in mounted
    assert str(Path(given.data[0]).parent) in mounted
    assert given.auto_resume
    assert load_recipe(given.recipe).size == "vit_base"


def test_the_documents_name_both_files(root: Path) -> None:
    text = (root / "docs/train.md").read_text()
    for path in TRAINING.iterdir():
        assert shlex.quote(str(path.relative_to(root))) in text
