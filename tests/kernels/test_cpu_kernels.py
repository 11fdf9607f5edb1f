"""The kernels of every instruction set that this processor has, and what is compiled of them.

Dimension key: `M` rows, `N` outputs, `K` inputs, `T` new tokens, `H` heads, `D` head dim.
"""

import itertools
import math
import random
import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kogpt.kernels import DecodeStep, Weight, building, extension
from kogpt.kernels.linear import pack_int4
from kogpt.kernels.packing import pack_reference, unpack
from kogpt.kernels.targets import Cpu
from kogpt.model.rotary import RotaryEmbedding
from tests.scale import scaled

from . import budget
from .cpu_harness import (
    HERE,
    ISAS,
    KERNELS,
    SOURCES,
    WIDE_ISAS,
    Kernels,
    build_foreign,
    build_real,
    build_wide,
    compile_to,
    compiler,
    tools,
)
from .products import (
    FLOATS,
    NAMES,
    check_product,
    new_packed,
    random_kinds,
    random_rows,
    random_weight,
)

on_every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=NAMES.get)

# A dtype or bits, inputs of a group, dtype of scales.
FORMATS = [
    *((dtype, 0, None) for dtype in FLOATS),
    (12, 0, None),
    (8, 0, torch.float32),
    (8, 128, torch.bfloat16),
    (8, 256, torch.float16),
    (4, 0, torch.float16),
    (4, 32, torch.bfloat16),
    (4, 64, torch.float32),
    (4, 96, torch.float16),
    (4, 128, torch.bfloat16),
    (4, 256, torch.float32),
]


def name_of(part: object) -> str:
    return "-" if part is None else NAMES.get(part, str(part))


on_every_format = pytest.mark.parametrize(("format", "group", "scales"), FORMATS, ids=name_of)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cpu kernels")


@pytest.fixture(scope="session")
def real(folder):
    return build_real(folder)


@pytest.fixture(scope="session")
def foreign(folder):
    return build_foreign(folder)


@pytest.fixture(scope="session")
def wide(folder):
    return build_wide(folder)


@pytest.fixture(params=[*ISAS, "foreign", *(f"wide {isa}" for isa in WIDE_ISAS)])
def kernels(request) -> Kernels:
    """The kernels of one instruction set, or as they run on processors of other kinds."""
    if request.param == "foreign":
        return Kernels(request.getfixturevalue("foreign"), "plain")
    if request.param.startswith("wide"):
        return Kernels(request.getfixturevalue("wide"), request.param.split()[1])
    return Kernels(request.getfixturevalue("real"), request.param)


def test_zen_5_is_told_by_its_family(real):
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    family = re.search(r"cpu family\s*: (\d+)", info)
    if family is None:
        pytest.skip("nothing tells the processor's family")
    is_zen5 = int(family[1]) == 26 and "avx512_bf16" in info
    assert (ISAS[real.best()] == "zen5") == is_zen5


def width(group: int) -> int:
    """Inputs: several blocks, and several groups."""
    return 768 if group == 96 else 512


def bits_of(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


# --- products ---


@on_every_format
@on_every_dtype
def test_any_number_of_rows_is_within_the_budget(kernels, dtype, format, group, scales):
    K = width(group)
    weight = random_weight(format, 70, K, group, scales=scales)
    for M in (1, 2, 3, 4, 5, 8, 9, 17):
        x = random_rows(M, K, dtype)
        check_product(kernels.linear(x, weight), x, weight, pairs=kernels.saturates)


@pytest.mark.parametrize("seed", range(scaled(5, 100)))
def test_many_rows_beside_bytes_are_within_the_budget(kernels, seed):
    """Of random sizes, with groups as small and as large as they come."""
    chance = random.Random(seed)
    K, N = 128 * chance.choice([2, 3, 4, 6, 8, 12]), chance.choice([63, 64, 65, 129])
    group = chance.choice([size for size in range(128, K + 1, 128) if K % size == 0])
    weight = random_weight(8, N, K, group, scales=chance.choice(FLOATS))
    x = random_rows(chance.choice([9, 12, 17, 31]), K, chance.choice(FLOATS))
    check_product(kernels.linear(x, weight), x, weight, pairs=kernels.saturates)


@on_every_format
def test_any_number_of_outputs_is_within_the_budget(kernels, format, group, scales):
    """And neither their number nor who computes which changes a bit of the others."""
    K = width(group)
    weight, x = random_weight(format, 70, K, group, scales=scales), random_rows(3, K, FLOATS[1])
    bias = random_rows(1, 128, torch.float16)[0, :70] * 9
    out = kernels.linear(x, weight, bias)
    check_product(out, x, weight, bias, pairs=kernels.saturates)
    for N in (1, 2, 3, 31, 33, 65):
        some = kernels.linear(x, weight.rows(slice(N)), bias[:N])
        assert bits_of(some).equal(bits_of(out[:, :N]))
    for share in (1, 3, 32, 45):
        assert bits_of(kernels.linear(x, weight, bias, share=share)).equal(bits_of(out))


@on_every_format
def test_any_number_of_outputs_of_one_row_is_within_the_budget(kernels, format, group, scales):
    """Which longer panels are read for."""
    K = width(group)
    weight, x = random_weight(format, 390, K, group, scales=scales), random_rows(1, K, FLOATS[1])
    out = kernels.linear(x, weight)
    check_product(out, x, weight, pairs=kernels.saturates)
    for N in (65, 191, 193):
        assert bits_of(kernels.linear(x, weight.rows(slice(N)))).equal(bits_of(out[:, :N]))
    assert bits_of(kernels.linear(x, weight, share=130)).equal(bits_of(out))


@on_every_format
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_a_row_has_the_same_bits_beside_any_others(kernels, dtype, format, group, scales):
    """Among few rows and among many; few and many may differ.

    The bias takes away what the last row comes to: what is left shows in which order it was added.
    """
    K = width(group)
    weight = random_weight(format, 35, K, group, scales=scales)
    for sizes in ((1, 2, 3, 4, 6, 7, 8), (9, 10, 11, 12, 17, 24)):
        x = random_rows(sizes[-1], K, dtype)
        bias = -(x[-1].double() @ weight.dequantize(torch.float64).T).float()
        out = kernels.linear(x, weight, bias)
        for M in sizes:
            some = kernels.linear(x[-M:].clone(), weight, bias)
            assert bits_of(some).equal(bits_of(out[-M:]))


@on_every_format
@on_every_dtype
def test_gelu_and_residual_are_rounded_with_the_product_at_once(
    kernels, dtype, format, group, scales
):
    """And whose outputs go through GELU does not depend on who computes which."""
    K = width(group)
    weight = random_weight(format, 130, K, group, scales=scales)
    x, residual = random_rows(8, K, dtype), random_rows(8, 256, dtype)[:, :130].contiguous()
    bias = random_rows(1, 256, dtype)[0, :130]
    for M, start in ((8, 0), (1, 70), (3, 129), (2, 130)):

        def after(y: Tensor, M: int = M, start: int = start) -> Tensor:
            y[:, start:] = F.gelu(y[:, start:], approximate="tanh")
            return residual[:M] + y

        rest = {"gelu_from": start, "residual": residual[:M]}
        out = kernels.linear(x[:M], weight, bias, **rest)
        check_product(out, x[:M], weight, bias, after=after, pairs=kernels.saturates)
        assert bits_of(kernels.linear(x[:M], weight, bias, share=45, **rest)).equal(bits_of(out))


@on_every_dtype
def test_gelu_is_exact_to_the_rounding_of_floats(kernels, dtype):
    """Of every size: tails, zeros, what is beyond the exponential's range, infinity and NaN."""
    sizes = torch.cat((torch.linspace(-20, 20, 4001), torch.tensor([0.0, -0.0, 1e4, -1e4, 6e4])))
    bias = torch.cat((sizes, torch.tensor([math.inf, math.nan]))).to(dtype)
    weight, x = Weight(torch.zeros(len(bias), 128)), torch.zeros(1, 128, dtype=dtype)
    (out,) = kernels.linear(x, weight, bias, gelu_from=0)
    # As a sum of 1 and a tanh it would cancel in the tail, in float64 as well.
    wide = bias.double()
    truth = wide * (math.sqrt(8 / math.pi) * (wide + 0.044715 * wide**3)).sigmoid()
    assert out[-2] == math.inf and out[-1].isnan()
    # An exponent of up to 87 is rounded to float32 before it is one. What is below the smallest
    # number of a dtype is lost, and what is beyond e^-87 counts as that: 1e-38 times 1e4.
    relative = 87 * budget.FLOAT32 if dtype == torch.float32 else torch.finfo(dtype).eps
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    torch.testing.assert_close(out[:-2].double(), truth[:-2], rtol=relative, atol=max(least, 2e-34))


@on_every_dtype
@pytest.mark.parametrize("C", [8, 24, 256, 1000])
def test_a_norm_is_within_the_budget(kernels, dtype, C):
    x = torch.randn(5, C, generator=torch.Generator().manual_seed(C)) * 3 + 2
    x, weight, bias = (part.to(dtype) for part in (x, x[0] / 2, x[1]))
    out = kernels.norm(x, weight, bias, 1e-5)
    truth = F.layer_norm(x.double(), (C,), weight.double(), bias.double(), 1e-5)
    low = F.layer_norm(x, (C,), weight, bias, 1e-5)
    # Each number has several roundings: the worst of a few thousand may be unlucky in float32.
    least = 8 * budget.FLOAT32 * truth.abs().max() if dtype == torch.float32 else 0.0
    budget.check("norm", out, truth, low, factor=budget.FORWARD, least=least)
    for m in range(5):
        assert bits_of(kernels.norm(x[m : m + 1], weight, bias, 1e-5)[0]).equal(bits_of(out[m]))


@pytest.mark.parametrize("format_", [each for each in FORMATS if each[2]], ids=name_of)
@on_every_dtype
def test_offsets_are_within_the_budget(kernels, dtype, format_):
    """They take nothing away but what the sums of integers have too much."""
    bits, group, scales = format_
    K = width(group)
    weight = random_weight(bits, 70, K, group, scales=scales, offset=True)
    x, bias = random_rows(17, K, dtype), random_rows(1, 128, dtype)[0, :70]
    for sizes in ((8, 1, 2, 3, 4, 5), (17, 9, 12)):
        out = kernels.linear(x[: sizes[0]], weight, bias)
        check_product(out, x[: sizes[0]], weight, bias, pairs=kernels.saturates)
        for M in sizes[1:]:
            assert bits_of(kernels.linear(x[:M], weight, bias, share=45)).equal(bits_of(out[:M]))


LONG = [(torch.bfloat16, 0), (12, 0), (8, 0), (4, 128)]


@pytest.mark.parametrize("K", [128, 2176, 4096, 20480])
@pytest.mark.parametrize(("format", "group"), LONG, ids=name_of)
def test_rows_of_any_length_are_within_the_budget(kernels, format, group, K):
    weight = random_weight(format, 40, K, group, scales=torch.bfloat16)
    for M in (1, 4):
        x = random_rows(M, K, torch.bfloat16)
        check_product(kernels.linear(x, weight), x, weight, pairs=kernels.saturates)


@pytest.mark.parametrize(("bits", "group"), [(8, 768), (4, 96), (4, 768)])
def test_groups_may_span_the_steps_that_long_rows_take(kernels, bits, group):
    weight = random_weight(bits, 40, 9216, group, scales=torch.bfloat16)
    for M in (1, 2, 3, 4, 9):
        x = random_rows(M, 9216, torch.bfloat16)
        check_product(kernels.linear(x, weight), x, weight, pairs=kernels.saturates)


# Weights' bits, and the largest integer to which a few rows are rounded.
on_integers = pytest.mark.parametrize(("bits", "most"), [(8, 32767), (4, 127)])


@on_integers
def test_products_of_integers_are_exact(kernels, bits, most):
    """Where the largest of a block is the largest there is, integers hold the block as it is."""
    weight = random_weight(bits, 37, 384)._replace(scale=torch.ones(37, 1))
    x = torch.arange(384).remainder(7).sub(3).float().repeat(5, 1)
    x[:, 5::128], x[:, 77::128] = most, -most
    expected = x.double() @ weight.dequantize(torch.float64).T
    assert kernels.linear(x, weight).double().equal(expected)


@on_integers
def test_the_largest_sums_of_integers_are_exact(kernels, bits, most):
    """No sum of products overflows on its way, of either sign; totals are floats, and rounded.

    Pairs of equal inputs become 64 each, for 63.5, where a pair must not come to more than 128.
    """
    low = -(1 << (bits - 1))
    for q in (low, -1 - low):
        values = torch.full((37, 384), q, dtype=torch.int8)
        weight = Weight(pack_int4(values) if bits == 4 else values, torch.ones(37, 1))
        for size in (most, -most):
            for M in (4, 12):
                x = torch.full((M, 384), float(size))
                exact = torch.full((M, 37), 384.0 * size * q)
                near = 64 / 63.5 - 1 if bits == 8 and M == 12 else 0.0
                out = kernels.linear(x, weight)
                torch.testing.assert_close(out, exact, rtol=near + 1e-6, atol=0)


@on_integers
def test_an_input_alone_gives_the_weights_of_its_column(kernels, bits, most):
    """Every weight is where it belongs, and every integer that there is becomes itself."""
    q = torch.arange(-128, 128).repeat(3, 1).to(torch.int8)
    weight = random_weight(bits, 3, 256)._replace(scale=torch.ones(3, 1))
    if bits == 8:
        weight = weight._replace(values=q)
    columns = [kernels.linear(x, weight) for x in (most * torch.eye(256)).split(8)]
    assert torch.cat(columns).T.equal(most * weight.dequantize(torch.float32))


@on_every_format
@on_every_dtype
def test_zeros_give_the_bias(kernels, dtype, format, group, scales):
    K = width(group)
    weight = random_weight(format, 35, K, group, scales=scales)
    bias = random_rows(1, 128, dtype)[0, :35]
    bias[7] = 0
    for M in (1, 5, 9):
        out = kernels.linear(torch.zeros(M, K, dtype=dtype), weight, bias)
        assert out.equal(bias.expand(M, -1))


@on_every_format
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_reaches_its_row_alone(kernels, bad, format, group, scales):
    K = width(group)
    weight, x = random_weight(format, 35, K, group, scales=scales), random_rows(12, K, FLOATS[1])
    for M in (4, 12):
        before = kernels.linear(x[:M].clone(), weight)
        spoiled = x[:M].clone()
        spoiled[1, 77] = bad
        out = kernels.linear(spoiled, weight)
        assert not out[1].isfinite().any()
        others = torch.arange(M) != 1
        assert bits_of(out[others]).equal(bits_of(before[others]))


@on_every_format
@pytest.mark.parametrize("size", [1e-28, 1e30])
def test_sizes_next_to_the_ends_of_float32_are_within_the_budget(
    kernels, size, format, group, scales
):
    K = width(group)
    weight = random_weight(format, 70, K, group, scales=scales)
    for M in (3, 9):
        x = random_rows(M, K, torch.float32) * size
        check_product(kernels.linear(x, weight), x, weight, pairs=kernels.saturates)


@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_too_small_for_an_inverse_counts_as_zero(kernels, bits):
    weight, x = random_weight(bits, 40, 256), random_rows(3, 256, torch.float32)
    x[:, :128] *= 1e-33
    zeroed = x.clone()
    zeroed[:, :128] = 0
    assert kernels.linear(x, weight).equal(kernels.linear(zeroed, weight))


@on_every_dtype
def test_results_are_rounded_as_pytorch_rounds(kernels, dtype):
    """Ties, subnormals, zeros of either sign, and what is too large for the dtype."""
    values = torch.tensor([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 3.14159])
    tiny = torch.tensor([2.0**-24, 2.0**-25, 3 * 2.0**-25, 2.0**-26, 2.0**-14, 1023.5 * 2.0**-24])
    ends = torch.tensor([0.0, 65504.0, 65519.0, 65520.0, 1e30, 3.3e38, math.inf])
    results = torch.cat((values, tiny, ends))
    weight = Weight(torch.zeros(2 * len(results), 128))
    bias = torch.cat((results, -results))
    out = kernels.linear(torch.zeros(1, 128, dtype=dtype), weight, bias)[0]
    assert out.equal(bias.to(dtype))


# --- attention ---


def random_step(
    T: int, D: int, R: int, dtype: torch.dtype, *, lengths: tuple, starts: tuple | None = None
) -> DecodeStep:
    """A step over a cache that is NaN behind its lengths and before its starts."""
    generator = torch.Generator().manual_seed(T + D)
    B, H, capacity = len(lengths), 3, max(lengths) + T
    q, k, v = torch.randn(3, B, T, H, D, generator=generator).to(dtype)
    cache = torch.randn(2, B, H, capacity, D, generator=generator).to(dtype)
    for b, length in enumerate(lengths):
        cache[:, b, :, length:] = math.nan
        if starts is not None:
            cache[:, b, :, : starts[b]] = math.nan
    return DecodeStep(
        *(q, k, v, *cache.transpose(2, 3), torch.tensor(lengths)),
        *RotaryEmbedding(R, capacity).table,
        None if starts is None else torch.tensor(starts),
    )


HEADS = [(8, 8), (24, 8), (32, 0), (64, 32), (128, 128), (256, 64)]


@on_every_dtype
def test_a_decode_step_is_within_the_budget_and_appends(kernels, dtype):
    # Heads of no multiple of 32 go to plain C++.
    taken = [(D, R) for D, R in HEADS if kernels.isa == 0 or D % 32 == 0]
    for (D, R), T in itertools.product(taken, (1, 2, 5, 8)):
        for starts in (None, (0, 0, 7, 15 + T)):
            step = random_step(T, D, R, dtype, lengths=(0, 1, 33, 15), starts=starts)
            before = budget.on_own_cache(step)
            out = kernels.decode(step)
            # A few hundred numbers: the worst of them may be unlucky in float32.
            check_step(out, before, least=8 * budget.FLOAT32 if dtype == torch.float32 else 0.0)
            check_cache(step, before)


@on_every_dtype
def test_the_result_may_take_the_place_of_the_values(kernels, dtype):
    step = random_step(3, 64, 32, dtype, lengths=(0, 9, 40), starts=(0, 3, 42))
    alone = budget.on_own_cache(step)
    out = kernels.decode(alone)
    assert kernels.decode(step, out=step.v).equal(out)
    for cache, other in zip(alone[3:5], step[3:5], strict=True):
        assert torch.equal(cache.nan_to_num(), other.nan_to_num())


@on_every_dtype
def test_tokens_read_together_or_one_by_one_give_the_same_bits(kernels, dtype):
    together = random_step(5, 64, 32, dtype, lengths=(0, 9, 40), starts=(0, 3, 42))
    alone = budget.on_own_cache(together)
    out = kernels.decode(together)
    for t in range(5):
        q, k, v = (x[:, t : t + 1] for x in alone[:3])
        step = alone._replace(q=q, k=k, v=v, lengths=together.lengths + t)
        assert torch.equal(kernels.decode(step), out[:, t : t + 1])
    for cache, other in zip(alone[3:5], together[3:5], strict=True):
        assert torch.equal(cache.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=NAMES.get)
def test_scores_beyond_what_exp_takes_are_within_the_budget(kernels, dtype):
    step = random_step(4, 64, 32, dtype, lengths=(0, 1, 33, 15))
    step.q.mul_(60)  # scores of some hundreds; float32's exp ends at 88
    before = budget.on_own_cache(step)
    check_step(kernels.decode(step), before, least=0.0)


def check_step(out: Tensor, step: DecodeStep, least: float) -> None:
    clean = step._replace(keys=step.keys.nan_to_num(), values=step.values.nan_to_num())
    steps = DecodeStep(*budget.doubled(clean)), clean
    truth, low = (budget.decode_attention_reference(budget.on_own_cache(each)) for each in steps)
    budget.check("out", out, truth, low, factor=budget.FORWARD, least=least)


def check_cache(step: DecodeStep, before: DecodeStep) -> None:
    """Behind a step, the cache has what the reference writes, and else what it had."""
    budget.decode_attention_reference(before)
    torch.testing.assert_close(
        step.keys,
        before.keys,
        rtol=torch.finfo(step.q.dtype).eps,  # one unit in the last place, of a rotated pair
        atol=4 * torch.finfo(step.q.dtype).eps,
        equal_nan=True,
    )
    torch.testing.assert_close(step.values, before.values, rtol=0, atol=0, equal_nan=True)


# --- packing ---


def far_apart() -> Tensor:
    """Weights whose high bytes all differ in their upper four bits."""
    kinds = torch.arange(512) % 16
    return (kinds * 16 + kinds % 3 << 8).to(torch.int16).view(torch.bfloat16).repeat(2, 1)


@pytest.mark.parametrize("seed", [*range(scaled(20, 2000)), None])
def test_weights_are_packed_as_the_definition_does(kernels, seed):
    weight = far_apart() if seed is None else random_kinds(seed)
    found, wanted = new_packed(weight), new_packed(weight)
    possible = pack_reference(weight, wanted)
    assert kernels.pack(weight, found) == possible
    if possible:
        assert found.equal(wanted) and bits_of(unpack(found)).equal(bits_of(weight))


# --- what is compiled ---


def test_the_numbers_of_the_headers_are_those_of_python():
    header = (SOURCES / "cpu.h").read_text() + (SOURCES / "array.h").read_text()
    (isas,) = re.findall(r"enum class Isa : int32_t \{ (.*) \}", header)
    assert [name.removeprefix("k").lower() for name in isas.split(", ")] == list(ISAS)


@pytest.fixture(scope="session")
def checked(folder) -> list[Path]:
    """Objects without optimisation, where every inline function is a symbol, with sanitizers."""
    flags = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    return [compile_to(folder / f"{path.stem}.o", *flags, "-c", path) for path in KERNELS]


@pytest.fixture(scope="session")
def bounds(folder, checked) -> Path:
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    return compile_to(folder / "bounds", *flags, HERE / "cpu_bounds.cpp", *checked)


@pytest.mark.parametrize("offset", [0, 1])
def test_no_kernel_reads_or_writes_beyond_its_arrays(bounds, offset):
    done = subprocess.run([bounds, str(offset)], capture_output=True, text=True)
    assert done.returncode == 0 and "every kernel ran" in done.stdout, done.stderr[:2000]


WIDE = re.compile(r"%[yz]mm|\tv[a-z]+[0-9]*[a-z]* .*%xmm|%k[1-7]")


def shared_functions(binary: Path) -> dict[str, bool]:
    """Functions of which the linker keeps one for all sources; whether they need AVX or later."""
    nm, objdump = tools()
    names = subprocess.run([nm, binary], capture_output=True, text=True, check=True).stdout
    weak = set(re.findall(r" [WwVvu] (\S+)$", names, re.MULTILINE))
    code = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", binary], capture_output=True, text=True, check=True
    ).stdout
    bodies = dict(re.findall(r"^[0-9a-f]+ <(\S+)>:\n((?:.+\n)*)", code, re.MULTILINE))
    return {name: bool(WIDE.search(body)) for name, body in bodies.items() if name in weak}


def test_no_function_that_sources_share_needs_a_newer_processor(checked):
    """The linker keeps any one of them, and older processors would run it."""
    for path in checked:
        found = shared_functions(path)
        assert found, "nothing to look at"
        assert not [name for name, wide in found.items() if wide], path.name


def test_no_function_that_the_library_shares_needs_a_newer_processor():
    if not extension.load(Cpu()):
        pytest.skip("no kernels for this processor, see above")
    library = extension.find(Cpu())
    assert library is not None
    assert not [name for name, wide in shared_functions(library.path).items() if wide]


def test_a_shared_function_that_needs_avx_would_be_found(folder):
    """The same look at a source that includes the standard library too late."""
    if building.machine() != "x86_64" or "clang" in compiler():
        pytest.skip("the pragma is GCC's, for x86")
    source = folder / "late.cpp"
    source.write_text(
        '#pragma GCC target("avx2")\n#include <algorithm>\n'
        "float most(const float* x) { return std::max(x[0] * x[1], x[2]); }\n"
    )
    assert any(shared_functions(compile_to(folder / "late.o", "-O0", "-c", source)).values())
