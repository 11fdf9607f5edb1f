"""What all tests share: the kernels for the CPU, compiled before any test reads standard error."""

import pytest
import torch

from kogpt.kernels import extension_available


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels() -> None:
    """Compiles them, where they are not in the cache; half a minute, once."""
    extension_available(torch.device("cpu"))
