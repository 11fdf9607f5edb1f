"""The machine: its name, its versions, and how much memory this process has taken of it."""

import os
import platform
import time
from pathlib import Path

import torch

import kogpt
from kogpt.kernels.extension import status

PROC = Path("/proc/self")
FORGET_PEAK = "5"  # proc(5), clear_refs: VmHWM becomes what is resident now


def describe_machine(device: torch.device) -> dict[str, str | int | float]:
    """What figures depend on. On a busy machine, one of high load, they mean little."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "kernels": status(device.type)[1] is None,  # to ask whether there are would compile them
        "load_average": os.getloadavg()[0],
        "kogpt": kogpt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def device_name(device: torch.device) -> str:
    """The GPU, or the processor and how many of its cores there are."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {os.cpu_count()} cores"


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        return platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def reset_peak(device: torch.device) -> bool:
    """Makes `peak_memory` count from now on; False where the system does not allow it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        (PROC / "clear_refs").write_text(FORGET_PEAK)
    except OSError:
        return False
    return True


def peak_memory(device: torch.device) -> int | None:
    """Most bytes taken since `reset_peak`, or since the start; None where that cannot be told.

    On CUDA it is what torch has allocated, elsewhere resident memory: weights that are mapped from
    a file count as far as they were read.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = (PROC / "status").read_text().splitlines()
    except OSError:  # no Linux
        return None
    found = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return next(found, None)


def process_age() -> float | None:
    """Seconds since this process began, Python's own start included; None where untold."""
    try:
        # Field 22, the start in ticks since the boot; the name, in brackets, may hold anything.
        fields = (PROC / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # no Linux
        return None
    started = int(fields[22 - 3]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
