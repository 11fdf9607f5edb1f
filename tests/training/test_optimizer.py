"""Optimizers, against PyTorch's own AdamW, closed forms, and themselves begun anew."""

import dataclasses
import io

import pytest
import torch
from torch import nn

from kogpt.checkpoint import load_model
from kogpt.errors import KoGPTError
from kogpt.kernels import building
from kogpt.training import train
from kogpt.training.optimizer import (
    WideAdamW,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    round_by_chance,
    set_learning_rate,
)

BFLOAT16 = {"precision": "bfloat16"}
MASTER = {**BFLOAT16, "weights": "bfloat16-master"}
STOCHASTIC = {**BFLOAT16, "weights": "bfloat16-stochastic"}
GRADES = {
    "float32": {},
    "float32, offload": {"offload": True},
    "master": MASTER,
    "master, offload": {**MASTER, "offload": True},
    "stochastic": STOCHASTIC,
    "stochastic, offload": {**STOCHASTIC, "offload": True},
}
EIGHT_BITS = {
    "8 bits": {"optimizer": "adamw-8bit"},
    "8 bits, stochastic": {"optimizer": "adamw-8bit", **STOCHASTIC},
}


class Toy(nn.Module):
    """A matrix large enough for 8 bits, and a vector."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(64, 80, generator=generator).to(dtype))
        self.vector = nn.Parameter(torch.randn(80, generator=generator).to(dtype))


def steps(model, optimizer, numbers, reached=lambda name, step: True):
    """Takes steps in which some parameters are reached by a gradient."""
    for step in numbers:
        torch.manual_seed(step)
        set_learning_rate(optimizer, 1e-2 / (step + 1))
        for name, parameter in model.named_parameters():
            gradient = torch.randn(parameter.shape).to(parameter.dtype)
            parameter.grad = gradient if reached(name, step) else None
        optimizer.step()


@pytest.fixture
def make(settings):
    def make(changes, model=None):
        changes = {"learning_rate": 1e-2, **changes}
        wide = changes.get("weights", "float32") == "float32"
        model = model or Toy(torch.float32 if wide else torch.bfloat16)
        return model, make_optimizer(model, settings(**changes))

    return make


def test_the_update_in_float32_is_pytorchs_to_the_last_bit(make):
    plain, moved = make({}), make({"offload": True})
    assert type(plain[1]) is torch.optim.AdamW and type(moved[1]) is WideAdamW
    for model, optimizer in (plain, moved):
        steps(model, optimizer, range(5))
    for ours, theirs in zip(moved[0].parameters(), plain[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_master_weights_are_what_float32_weights_would_be(make):
    narrow, optimizer = make(MASTER)
    wide, other = make({}, Toy(torch.bfloat16).float())
    for step in range(5):
        torch.manual_seed(step)
        for a, b in zip(narrow.parameters(), wide.parameters(), strict=True):
            a.grad = torch.randn(a.shape).bfloat16()
            b.grad = a.grad.float()
        optimizer.step()
        other.step()
    for a, b in zip(narrow.parameters(), wide.parameters(), strict=True):
        assert torch.equal(optimizer.state[a]["master"], b)
        assert torch.equal(a, b.bfloat16())


@pytest.mark.parametrize("grade", GRADES)
def test_each_moment_decays_by_its_own_beta(make, grade):
    model, optimizer = make({**GRADES[grade], "beta1": 0.75, "beta2": 0.875})
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    optimizer.step()
    state = optimizer_tensors(optimizer, model, 1)
    assert not any(name.endswith(".step") for name in state)
    for name in ("matrix", "vector"):
        assert (state[f"{name}.exp_avg"] == (1 - 0.75) * 2).all()
        assert (state[f"{name}.exp_avg_sq"] == (1 - 0.875) * 2**2).all()


def test_rounding_by_chance_is_right_in_the_mean_and_takes_the_neighbours_alone():
    torch.manual_seed(0)
    x = torch.cat((torch.randn(200), torch.tensor([0.0, 1.0, -3.0, 1e-30, 3e38, float("inf")])))
    down = (x.view(torch.int32) & -1 << 16).view(torch.float32)
    up = ((x.view(torch.int32) & -1 << 16) + (1 << 16)).view(torch.float32)
    total, draws = torch.zeros(len(x), dtype=torch.float64), 4000
    for _ in range(draws):
        y = round_by_chance(x)
        assert torch.equal(y, y.bfloat16().float())
        assert ((y == down) | (y == up)).all()
        total += y
    assert torch.equal(round_by_chance(down), down)
    finite = x.isfinite() & up.isfinite()
    # Of a rounding up with probability p, the mean of n draws spreads by √(p (1 - p) / n) gaps.
    error = (total / draws - x)[finite] / (up - down)[finite]
    assert error.abs().max() < 5 * 0.5 / draws**0.5
    assert abs(error.mean()) < 5 * 0.5 / (draws * len(error)) ** 0.5


def test_steps_below_the_last_bit_are_lost_by_rounding_and_kept_by_chance(settings):
    weights = nn.Parameter(torch.full((100, 100), 1.0, dtype=torch.bfloat16))
    plain = nn.Parameter(weights.detach().clone())
    ours = WideAdamW([{"params": [weights], "weight_decay": 0}], 1e-4, (0.9, 0.95), True, False)
    theirs = torch.optim.AdamW([plain], 1e-4, weight_decay=0)
    for step in range(50):
        torch.manual_seed(step)
        for parameter, optimizer in ((weights, ours), (plain, theirs)):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert (plain == 1).all()
    # A constant gradient moves a weight by the rate: the mean over 10,000 is within 5 deviations.
    assert weights.double().mean().item() == pytest.approx(1 - 50e-4, abs=5 * 0.0039 * 0.5 / 100)


@pytest.mark.parametrize("grade", GRADES)
def test_what_is_restored_goes_on_to_the_last_bit(make, grade):
    assert_goes_on(make, GRADES[grade])


@pytest.mark.parametrize("grade", GRADES)
@pytest.mark.parametrize(
    "reached",
    [
        lambda name, step: name == "matrix" or step == 1,
        lambda name, step: name == "matrix" or step > 3,
        lambda name, step: name == "matrix",
    ],
    ids=["once", "afterwards", "never"],
)
def test_a_parameter_goes_on_from_the_steps_that_reached_it(make, grade, reached):
    assert_goes_on(make, GRADES[grade], reached)


def assert_goes_on(make, changes, reached=lambda name, step: True):
    model, optimizer = make(changes)
    steps(model, optimizer, range(3), reached)
    # As through a file.
    tensors = optimizer_tensors(optimizer, model, 3)
    saved = {name: tensor.clone() for name, tensor in tensors.items()}
    resumed, other = make(changes)
    resumed.load_state_dict(model.state_dict())
    restore_optimizer(other, resumed, saved, 3)
    for each in ((model, optimizer), (resumed, other)):
        steps(*each, range(3, 6), reached)
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    end, ours = optimizer_tensors(optimizer, model, 6), optimizer_tensors(other, resumed, 6)
    assert ours.keys() == end.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, end[name]), name


@pytest.mark.parametrize("grade", GRADES)
def test_a_run_goes_on_to_the_last_bit(settings, tmp_path, grade):
    config = settings(steps=4, save_every=2, keep=9, micro_batch_size=3, **GRADES[grade])
    whole = train(config, io.StringIO())
    part = dataclasses.replace(config, out=tmp_path / "part", resume=True)
    train(dataclasses.replace(part, steps=2), io.StringIO())
    resumed = train(part, io.StringIO())
    # The schedule of a run of two steps is another: it goes on from the checkpoint of the whole.
    (config.out / "step-00000004").rename(tmp_path / "step-00000004")
    resumed = train(dataclasses.replace(config, resume=True), io.StringIO())
    for name in ("model-00001-of-00001.safetensors", "optimizer.safetensors"):
        assert (resumed / name).read_bytes() == (tmp_path / whole.name / name).read_bytes()
    dtype = torch.float32 if "float32" in grade else torch.bfloat16
    assert load_model(resumed).dtype == dtype


def test_micro_batches_add_up_in_float32(settings):
    for batch_size, dtype in ((2, torch.bfloat16), (64, torch.float32)):
        model = Toy(torch.bfloat16)
        make_optimizer(model, settings(**MASTER, batch_size=batch_size, micro_batch_size=2))
        for _ in range(32):
            (model.vector * 0.01).sum().backward()
        assert model.vector.grad.dtype == dtype
    one = torch.tensor(0.01).bfloat16().float()
    torch.testing.assert_close(model.vector.grad, one.expand(80) * 32, rtol=1e-6, atol=0)


def test_bfloat16_weights_learn_as_float32_ones_do(settings):
    losses = {}
    for grade in ("float32", "master", "stochastic"):
        config = settings(
            steps=40, learning_rate=1e-2, batch_size=8, out=settings().out / grade, **GRADES[grade]
        )
        train(config, told := io.StringIO())
        losses[grade] = float(told.getvalue().rsplit("held out loss ", 1)[1].split()[0].strip(","))
    for grade in ("master", "stochastic"):
        # Rounded weights of so small a model are noise of two per cent in its loss.
        assert losses[grade] == pytest.approx(losses["float32"], rel=0.03), losses


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "bfloat16-master"}, "weights is .bfloat16-master., which goes with precision"),
        ({"optimizer": "adamw-8bit", **MASTER}, "keeps no master weights"),
        ({"optimizer": "adamw-8bit", "offload": True}, "adamw-8bit has no offload"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd', it must be adamw or adamw-8bit"),
        ({"weights": "float16"}, "weights is 'float16', it must be float32, bfloat16-master or"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_8_bits_without_a_compiler_are_refused(make, monkeypatch):
    pytest.importorskip("torchao", reason="8-bit states come from torchao")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KoGPTError, match="adamw-8bit compiles its step: no C.. compiler"):
        make(EIGHT_BITS["8 bits"])


@pytest.fixture
def can_compile():
    pytest.importorskip("torchao", reason="8-bit states come from torchao")
    try:
        building.find_compiler()
    except building.CannotBuildError as reason:
        pytest.skip(f"the step is compiled: {reason}")


@pytest.mark.parametrize("grade", EIGHT_BITS)
def test_8_bits_go_on_to_the_last_bit(make, can_compile, grade):
    assert_goes_on(make, EIGHT_BITS[grade])


def test_8_bits_take_a_quarter_and_stay_near_float32(make, can_compile):
    (model, optimizer), (exact, other) = make(EIGHT_BITS["8 bits"]), make({})
    for each in ((model, optimizer), (exact, other)):
        steps(*each, range(5))
    state = optimizer_tensors(optimizer, model, 5)
    sizes = [state[f"matrix.exp_avg.{part}"].nbytes for part in ("codes", "scale", "qmap")]
    assert sizes == [64 * 80, 64 * 80 // 256 * 4, 256 * 4]
    # Codes lie 1/128 of a block's largest moment apart at most: a tenth of the way is ample.
    assert (model.matrix - exact.matrix).norm() < 0.1 * (exact.matrix - Toy().matrix).norm()


@pytest.mark.parametrize("grade", GRADES)
def test_a_parameter_without_a_gradient_stays_as_it_was(make, grade):
    model, optimizer = make(GRADES[grade])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.matrix.grad = torch.ones_like(model.matrix)
    optimizer.step()
    assert model.vector.equal(before["vector"]) and not model.matrix.equal(before["matrix"])


@pytest.mark.parametrize("weights", [{}, MASTER, STOCHASTIC])
def test_what_is_to_be_offloaded_is(make, weights):
    """On a CPU all lies in one place."""
    for offload in (False, True):
        optimizer = make({**weights, "offload": offload})[1]
        assert getattr(optimizer, "offload", False) is offload
