"""What this machine computes with: whether there is a GPU, what a device can do, and how many CPUs are ours.

Torch is asked only where it takes torch to know.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def has_gpu() -> bool:
    """Whether torch sees a GPU; not asked where the driver is not even loaded, for the import takes seconds."""
    if not any(Path(sign).exists() for sign in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
        return False
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def check_device(device: str) -> None:
    """Refuse a device that cannot be computed on.

    Raises:
        CheckpointError: Torch knows no such device, or it is not here.
    """
    try:
        import torch
    except ImportError:
        return  # reading says so, better
    try:
        torch.zeros(1, device=device).cpu()  # only what gives a number back is there
    except (RuntimeError, AssertionError, ImportError) as error:  # torch says it differently of every kind
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise CheckpointError(
            f"Device {device!r} cannot be used: {reason.rstrip('.')}.",
            code="device",
            hint="Leave the device out to run on what is here; if there is a GPU, check its number and driver.",
            field="device",
        ) from error


def find_device(wanted: str | None) -> torch.device:
    """The device asked for, or the GPU where there is one.

    Raises:
        CheckpointError: torch does not know it, or it is not here.
    """
    import torch

    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(name)
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether a device has arithmetic for bfloat16; one that only emulates it is faster in float32, often by far."""
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):  # torch answers for the current one, and there may be several kinds
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def autocast(device: torch.device) -> torch.autocast:
    """Bfloat16 for what stands inside, on a GPU that has arithmetic for it; elsewhere everything stays as it is."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and has_bf16(device))


def usable_cpus(root: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs this process may use: its affinity, cut by the container's quota (cgroup v2 or v1), at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(allowed, math.ceil(_quota(root) or allowed)))


def _quota(root: Path) -> float | None:
    """CPUs granted by the cgroup, None when it sets no bound or cannot be read."""
    try:
        if (v2 := root / "cpu.max").exists():
            quota, period = v2.read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None  # "max", -1, or no cgroup at all
