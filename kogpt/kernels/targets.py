"""What a library is compiled for: GPUs of one compute capability, or this machine's processor."""

import os
import re
from dataclasses import dataclass
from typing import ClassVar

import torch

from kogpt.kernels import building
from kogpt.kernels.building import CannotBuildError, Record

Capability = tuple[int, int]

OLDEST_CAPABILITY = (8, 0)  # bfloat16 tensor cores and asynchronous copies
EARLY_LAUNCHES = (9, 0)  # before the kernels ahead have ended


@dataclass(frozen=True)
class Gpu:
    """CUDA devices of one compute capability.

    Attributes:
        kind: of the library that serves them.
        name: in messages.
        patience: about how long compiling takes.
    """

    capability: Capability
    kind: ClassVar[str] = "cuda"
    name: ClassVar[str] = "CUDA"
    patience: ClassVar[str] = "half a minute"

    @classmethod
    def current(cls) -> "Gpu":
        """The current CUDA device.

        Raises:
            CannotBuildError: there is none.
        """
        if torch.version.cuda is None:
            raise CannotBuildError("this build of torch has no CUDA")
        if not torch.cuda.is_available():
            raise CannotBuildError("no CUDA device")
        return cls(torch.cuda.get_device_capability())

    @property
    def runtime(self) -> str:
        """What a library for it links against."""
        return f"CUDA {(torch.version.cuda or '').split('.')[0]}"

    def served_by(self, record: Record) -> bool:
        """Whether a library was compiled for this torch and such a device."""
        fitting = record.compiler.startswith(f"{self.runtime}.")
        return fitting and covers(record.architectures, self.capability)

    def architectures(self) -> str:
        """What to compile for: TORCH_CUDA_ARCH_LIST, or else the devices that are here.

        Raises:
            CannotBuildError: the device is too old, or TORCH_CUDA_ARCH_LIST leaves it out or
                cannot be read.
        """
        if self.capability < OLDEST_CAPABILITY:
            names = sm(self.capability), sm(OLDEST_CAPABILITY)
            raise CannotBuildError("this GPU is {}, the kernels need {} or later".format(*names))
        chosen = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";")
        if not chosen:
            here = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
            able = {device for device in here if device >= OLDEST_CAPABILITY} | {self.capability}
            return ";".join("{}.{}".format(*device) for device in sorted(able))
        building.refuse_architectures(chosen)
        if not covers(chosen, self.capability):
            gpu = f"this GPU, an {sm(self.capability)}"
            raise CannotBuildError(f"TORCH_CUDA_ARCH_LIST={chosen} leaves out {gpu}")
        return chosen


@dataclass(frozen=True)
class Cpu:
    """The processor, whose instruction sets are looked at when kernels run, not before.

    Attributes: as those of `Gpu`.
    """

    kind: ClassVar[str] = "cpu"
    name: ClassVar[str] = "CPU"
    patience: ClassVar[str] = "20 seconds"
    runtime: ClassVar[str] = "CPU"

    def served_by(self, record: Record) -> bool:
        """Whether a library was compiled for such a processor."""
        return record.architectures == building.machine()

    def architectures(self) -> str:
        """What to compile for."""
        return building.machine()


Target = Gpu | Cpu


def sm(capability: Capability) -> str:
    """A compute capability in the compiler's words."""
    return "sm_{}{}".format(*capability)


def covers(architectures: str, capability: Capability) -> bool:
    """Whether code compiled for `architectures` runs on a device.

    Machine code runs on its own major version from its minor version up, PTX on all that is later;
    code for an architecture with a letter, as 9.0a, on that one alone. From 9.0 on, kernels are
    launched before those ahead have ended, which code for older ones would not wait for.
    """
    for major, minor, letter, ptx in re.findall(r"(\d+)\.(\d)([a-z]?)(\+PTX)?", architectures):
        compiled = (int(major), int(minor))
        waits = compiled >= EARLY_LAUNCHES or capability < EARLY_LAUNCHES
        if capability == compiled or (not letter and ptx and capability > compiled and waits):
            return True
        if not letter and capability[0] == compiled[0] and capability > compiled:
            return True
    return False
