"""A tiny random model, for each test its own."""

import pytest
import torch

from kogpt.model import KoGPT
from tests.checkpoint.tiny import CONFIG, tiny_state


@pytest.fixture
def model() -> KoGPT:
    model = KoGPT(CONFIG)
    model.load_state_dict(tiny_state())
    return model.eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, (3, 9), generator=torch.Generator().manual_seed(2))
