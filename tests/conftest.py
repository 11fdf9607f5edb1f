"""What all tests share: the kernels for the CPU, compiled before any test reads standard error."""

import os

# Of several processes (pytest -n) each computes with one thread, and so do those that it starts:
# threads of more than there are cores wait for each other. Before torch counts them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from kogpt.kernels import extension_available


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels() -> None:
    """Compiles them, where they are not in the cache; half a minute, once."""
    extension_available(torch.device("cpu"))
