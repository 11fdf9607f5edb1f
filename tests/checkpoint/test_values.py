"""Values: statistics, overflow, and what rounding to float16 loses, counted exactly."""

import json
import math

import numpy as np
import pytest
import torch

from kogpt.checkpoint import ConversionOptions, convert, open_checkpoint
from kogpt.checkpoint.overflow import clamp_finite, misfits
from kogpt.checkpoint.statistics import Statistics
from kogpt.errors import InputRefusedError
from tests.checkpoint.tiny import tiny_state, write_released
from tests.scale import scaled

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def all_halves() -> torch.Tensor:
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)


def chance_floats(count: int, seed: int = 0) -> torch.Tensor:
    """Floats of every magnitude: random bits."""
    bits = np.random.default_rng(seed).integers(0, 1 << 32, count, dtype=np.uint32)
    return torch.from_numpy(bits.view(np.float32).copy())


def expected(values: torch.Tensor) -> tuple:
    wide = values.double()
    finite = wide[wide.isfinite()]
    low = finite.min().item() if len(finite) else math.inf
    high = finite.max().item() if len(finite) else -math.inf
    return low, high, int(wide.isnan().sum()), int(wide.isinf().sum())


def measured(values: torch.Tensor) -> tuple:
    seen = Statistics(values.dtype)
    seen.update(values)
    return seen.min, seen.max, seen.nan, seen.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_are_those_of_the_values(dtype):
    torch.manual_seed(0)
    for values in [
        torch.randn(1000),
        torch.rand(1000) + 1,
        -torch.rand(1000) - 1,
        torch.zeros(3),
        -torch.zeros(3),
        torch.tensor([0.0, -0.0]),
        torch.tensor([math.nan]),
        torch.tensor([math.inf, -math.inf, math.nan, 1.0]),
        torch.tensor([-math.inf, -2.0]),
        torch.tensor(-3.0),
        torch.randn(600_000),
        chance_floats(300_000),
    ]:
        values = values.to(dtype)
        assert measured(values) == expected(values)


def test_statistics_of_all_65536_halves_are_exact():
    halves = all_halves()
    assert measured(halves) == (-65504.0, 65504.0, 2046, 2)
    for bits in scaled(1, 1) * [all_halves().view(torch.bfloat16)]:
        assert measured(bits) == expected(bits)
    for value in halves[:: scaled(64, 1)]:
        assert str(measured(value[None])) == str(expected(value[None]))


def test_misfits_of_float16_are_counted_exactly():
    """The oracle is the rounding of numpy."""
    edges = torch.tensor([65504.0, 65519.996, 65520.0, 65536.0, 3e38, 2.0**-24, 2.0**-25, 1e-45])
    edges = torch.cat([edges, torch.nextafter(edges, torch.tensor(0.0)), torch.zeros(1)])
    edges = torch.cat([edges, -edges, torch.tensor([math.inf, -math.inf, math.nan])])
    for values in (edges, all_halves().float(), chance_floats(scaled(100_000, 1_000_000))):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            halves = values.numpy().astype(np.float16)
        overflowed = np.isinf(halves) & np.isfinite(values.numpy())
        vanished = (halves == 0) & (values.numpy() != 0)
        assert misfits(values) == (overflowed.sum(), vanished.sum())
    assert misfits(all_halves().float()) == (0, 0)


def test_clamping_holds_finite_values_and_leaves_the_rest():
    values = torch.tensor([7e4, -7e4, math.inf, -math.inf, math.nan, -0.0, 5.0, 65520.0])
    clamped = clamp_finite(values).half()
    wanted = torch.tensor([65504, -65504, math.inf, -math.inf, math.nan, -0.0, 5, 65504]).half()
    assert torch.equal(
        clamped.view(torch.int16)[[0, 1, 2, 3, 5, 6, 7]],
        wanted.view(torch.int16)[[0, 1, 2, 3, 5, 6, 7]],
    )
    assert clamped[4].isnan()


# The policies, through whole conversions.


@pytest.fixture
def too_large(tmp_path):
    """A float32 checkpoint with 3 values beyond float16 in two tensors, and 2 that vanish."""
    state = tiny_state()
    state["transformer.ln_f.weight"][:2] = torch.tensor([70000.0, -1e30])
    state["lm_head.bias"][:4] = torch.tensor([65520.0, 1e-10, -1e-30, 65519.0])
    write_released(tmp_path / "src", state)
    return tmp_path, state


def test_overflow_is_counted_and_stops_the_conversion(too_large):
    root, _ = too_large
    with pytest.raises(InputRefusedError, match="3 values in 2 tensors overflow float16") as caught:
        convert(root / "src", root / "dst", ConversionOptions(dtype="float16"))
    assert "the first 2 in transformer.ln_f.weight" in str(caught.value)
    assert [path.name for path in root.iterdir()] == ["src"]


def test_overflow_can_be_clamped(too_large):
    root, state = too_large
    options = ConversionOptions(dtype="float16", on_overflow="clamp")
    report = convert(root / "src", root / "dst", options)
    assert (report.overflowed, report.vanished) == (3, 2)
    with open_checkpoint(root / "dst") as reader:
        for name, tensor in state.items():
            assert torch.equal(reader.read(name), tensor.clamp(-65504, 65504).half())


def test_overflow_can_lead_to_bfloat16(too_large):
    root, state = too_large
    options = ConversionOptions(dtype="float16", on_overflow="bfloat16")
    report = convert(root / "src", root / "dst", options)
    assert (report.overflowed, report.vanished) == (3, 0)
    assert "\nstored as bfloat16: 3 values are too large for float16\n" in str(report)
    assert json.loads((root / "dst" / "config.json").read_text())["dtype"] == "bfloat16"
    with open_checkpoint(root / "dst") as reader:
        assert torch.equal(reader.read("lm_head.bias"), state["lm_head.bias"].bfloat16())


@pytest.mark.parametrize("policy", ["error", "clamp", "bfloat16"])
def test_without_overflow_every_policy_writes_the_same_halves(tmp_path, policy):
    write_released(tmp_path / "src", tiny_state())
    options = ConversionOptions(dtype="float16", on_overflow=policy)
    convert(tmp_path / "src", tmp_path / "dst", options)
    with open_checkpoint(tmp_path / "dst") as reader:
        for name, tensor in tiny_state().items():
            assert torch.equal(reader.read(name), tensor.half())
