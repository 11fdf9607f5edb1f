"""The learning rate against PyTorch's own schedulers."""

import pytest
import torch
from torch.optim import lr_scheduler

from kogpt.training.schedule import learning_rate


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_the_rate_is_a_linear_rise_and_half_a_cosine(settings, floor):
    config = settings(learning_rate=0.3, warmup_steps=10, final_learning_rate=floor)
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    rise = lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=9)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, 90, eta_min=0.3 * floor)
    schedule = lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[10])
    for step in range(100):
        assert learning_rate(step, 100, config) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_a_run_of_warm_up_alone_never_divides_by_zero(settings):
    config = settings(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(step, 4, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(0, 1, settings(learning_rate=1.0, warmup_steps=0)) == 1.0
