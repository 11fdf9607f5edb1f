"""How much disk and memory there is, and the refusal when it does not suffice."""

import os
from pathlib import Path

import torch

from kogpt.errors import NotEnoughResourcesError


def require_disk(path: Path, needed: int) -> None:
    """Refuses work for which the file system of `path` (or its nearest parent) has no room.

    Raises:
        NotEnoughResourcesError: fewer than `needed` bytes are free.
    """
    free = free_disk(path)
    if free < needed:
        raise NotEnoughResourcesError(
            f"{path}: not enough disk: {human(needed)} needed, {human(free)} free"
        )


def free_disk(path: Path) -> int:
    """Bytes that this user may still write to the file system of `path`."""
    while not path.exists():
        path = path.absolute().parent
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def require_memory(device: torch.device, needed: int, what: str) -> None:
    """Refuses to load what the device cannot hold.

    Raises:
        NotEnoughResourcesError: fewer than `needed` bytes are available.
    """
    available = available_memory(device)
    if available is not None and available < needed and device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for tensors to come counts as taken
        available = available_memory(device)
    if available is not None and available < needed:
        raise NotEnoughResourcesError(
            f"{what}: not enough memory on {device}: {human(needed)} needed,"
            f" {human(available)} available"
        )


def available_memory(device: torch.device) -> int | None:
    """Bytes a program may still take on the device; None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # no Linux
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return min(kilobytes["MemAvailable"] * 1024, _cgroup_room())


def _cgroup_room() -> int:
    """What the container's own limit leaves, where there is one."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        cache = (folder / "memory.stat").read_text().split("\nfile ")[1].split("\n")[0]
        return (1 << 62) if limit == "max" else int(limit) - used + int(cache)
    except (OSError, IndexError, ValueError):
        return 1 << 62


def human(count: int) -> str:
    """A number of bytes for people, in powers of ten like disks."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
