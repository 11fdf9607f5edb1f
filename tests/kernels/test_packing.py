"""Weights in 12 bits: every bit comes back, and the compiled packer does what its definition says.

Dimension key: `N` outputs, `K` inputs.
"""

import itertools
import re
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from kogpt.box import BOX
from kogpt.checkpoint import load_model
from kogpt.kernels import Weight, building, extension_available, linear
from kogpt.kernels.linear import multiplies_pairs, packs
from kogpt.kernels.packing import (
    BLOCK,
    CODES,
    KEPT_SHARE,
    MOST_INPUTS,
    RARE_SHARE,
    ROW_MULTIPLE,
    most_rare,
    pack,
    pack_reference,
    packed_inputs,
    row_bytes,
    unpack,
)
from tests.server import Forked

from .products import new_packed

WIDTHS = [128, 256, 384, 4096, 40960]
SPECIAL = [0.0, -0.0, 1e-40, -1e-40, 3e38, torch.inf, -torch.inf, torch.nan, 2**-60, -(2.0**60)]


@pytest.fixture
def kernels() -> None:
    if not extension_available(torch.device("cpu")):
        pytest.skip("no kernels for this processor, see above")


def normal(N: int, K: int) -> Tensor:
    """Weights as those of a network, each row of another size."""
    generator = torch.Generator().manual_seed(N * K)
    sizes = torch.logspace(-6, 3, N)[:, None]
    return (torch.randn(N, K, generator=generator) * sizes).bfloat16()


def packed(weight: Tensor, pack: Callable[[Tensor, Tensor], bool] = pack) -> Tensor | None:
    """Weights that were packed, or None."""
    place = new_packed(weight)
    return place if pack(weight, place) else None


def bits_of(x: Tensor) -> Tensor:
    return x.view(torch.int16)


@pytest.mark.parametrize("K", WIDTHS)
def test_every_bit_comes_back(K):
    weight = normal(40, K)
    weight[3, -len(SPECIAL) :] = torch.tensor(SPECIAL)
    weight[4] = 0
    weight[5] = -0.0
    bytes = packed(weight)
    assert bits_of(unpack(bytes)).equal(bits_of(weight))
    assert bytes.nbytes <= 0.8 * weight.nbytes or K < 512


@pytest.mark.parametrize("K", WIDTHS)
def test_a_row_may_have_so_many_numbers_without_a_code_and_no_more(K):
    common = 0x30 + torch.arange(K) % (CODES - 1)
    others = 0x40 + torch.arange(most_rare(K) + 1)
    numbers = (common << 8 | torch.arange(K) % 256).to(torch.int16)
    numbers[-len(others) + 1 :] = (others[1:] << 8).to(torch.int16)
    weight = normal(5, K)
    weight[2] = numbers.view(torch.bfloat16)
    assert bits_of(unpack(packed(weight))).equal(bits_of(weight))
    bits_of(weight)[2, 0] = others[0] << 8
    assert packed(weight) is None and packed(weight, pack_reference) is None


def test_a_row_keeps_codes_where_few_of_its_numbers_have_none():
    K = 4096
    others = most_rare(K) // KEPT_SHARE
    numbers = (0x30 + torch.arange(K) % (CODES - 1)) << 8
    rows = numbers.repeat(4, 1)
    rows[1, :others] = 0x5500
    rows[2, : others + 1] = 0x6600
    rows[3] = numbers + 0x100  # of which 0x3F00 has no code of the first row, 0x3000 is not there
    weight = rows.to(torch.int16).view(torch.bfloat16)
    place = packed(weight)
    assert bits_of(unpack(place)).equal(bits_of(weight))
    codes = place[:, :CODES].tolist()
    assert codes[0] == codes[1] == [0, *range(0x30, 0x3F)]
    assert codes[2] != codes[1], "more of a row have none, and it gets its own"
    assert sorted(codes[3]) == [0, *range(0x31, 0x40)]


def test_trained_weights_are_packed_whole():
    for name, weight in load_model(BOX, torch.bfloat16).state_dict().items():
        if weight.ndim == 2 and "wte" not in name:
            assert bits_of(unpack(packed(weight))).equal(bits_of(weight)), name


def test_rows_that_lie_apart_are_packed_as_others(kernels):
    for weight in (normal(12, 512)[::2, 128:384], normal(12, 256).T.contiguous().T):
        whole = weight.clone(memory_format=torch.contiguous_format)
        for how in (pack, pack_reference):
            assert packed(weight, how).equal(packed(whole, how))


def test_many_rows_have_the_bits_of_weights_that_are_not_packed(kernels, monkeypatch):
    """For they are unpacked, and then multiplied in the same order."""
    monkeypatch.setitem(linear.__globals__, "HAS_VECTORS", True)
    monkeypatch.setitem(linear.__globals__, "slow_dtypes", lambda: {torch.bfloat16})
    weight, x = normal(70, 512), normal(17, 512)
    assert linear(x, Weight(packed(weight))).equal(linear(x, Weight(weight)))


def test_rows_are_packed_where_that_is_faster(kernels, monkeypatch):
    widths = (384, 512, 576, 640, MOST_INPUTS, MOST_INPUTS + BLOCK)
    suits = (False, True, False, True, True, False)
    for vectors, slow, pairs in itertools.product((True, False), repeat=3):
        monkeypatch.setitem(linear.__globals__, "HAS_VECTORS", vectors)
        dtypes = {torch.bfloat16} if slow else {torch.float16}
        monkeypatch.setitem(linear.__globals__, "slow_dtypes", lambda dtypes=dtypes: dtypes)
        monkeypatch.setitem(linear.__globals__, "multiplies_pairs", lambda pairs=pairs: pairs)
        fast = vectors and (slow or pairs)
        assert tuple(map(packs, widths)) == tuple(each and fast for each in suits)


def test_pairs_are_multiplied_where_pytorch_has_no_tiles(monkeypatch):
    for pairs, tiles in itertools.product((True, False), repeat=2):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda pairs=pairs: pairs)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        assert multiplies_pairs.__wrapped__() == (pairs and not tiles)


@pytest.mark.parametrize("K", [128, 4096, 20480])
def test_products_count_every_number_without_a_code(kernels, K):
    """The largest of their rows, as many as may be, the first and the last input among them."""
    numbers = 0x2F12 + 0x100 * (torch.arange(K) % (CODES - 1))
    places = torch.linspace(0, K - 1, most_rare(K)).round().long()
    numbers[places] = torch.tensor([0x3F34, 0xBF34, 0x4034, 0xC034]).repeat(most_rare(K) // 4)
    weight = normal(40, K)
    weight[3::5] = numbers.to(torch.int16).view(torch.bfloat16)
    place = packed(weight)
    x = torch.randn(9, K, generator=torch.Generator().manual_seed(K))
    wanted = x.double() @ weight.double().T
    for M in (1, 4, 9):
        error = (linear(x[:M], Weight(place)) - wanted[:M]).norm(dim=0)
        assert (error <= 1e-4 * wanted[:M].norm(dim=0)).all()


def pack_alone() -> None:
    weight = normal(3, 256)
    assert pack(weight, new_packed(weight))
    assert torch._C._dispatch_has_kernel_for_dispatch_key("kogpt::pack", "CPU")


def test_the_kernel_is_there_when_it_is_first_asked_for(kernels):
    code, _, errors = Forked({}, pack_alone).finish(time.monotonic() + 60)
    assert code == 0, errors


def test_inputs_are_told_by_the_bytes_of_a_row():
    for K in range(BLOCK, MOST_INPUTS + 1, BLOCK):
        assert packed_inputs(row_bytes(K)) == K
        assert row_bytes(K) % ROW_MULTIPLE == 0


def test_the_op_refuses_what_it_cannot_pack(kernels):
    place = torch.empty(2, row_bytes(128), dtype=torch.uint8)
    zeros = torch.zeros(2, MOST_INPUTS + BLOCK, dtype=torch.bfloat16)
    for weight, to, told in (
        (torch.zeros(2, 128), place, "another dtype"),
        (zeros[:, :96], place, "96 inputs"),
        (zeros[:, :0], place, "0 inputs"),
        (zeros, place, f"{MOST_INPUTS + BLOCK} inputs"),
        (zeros[:, :256], place, f"no place for 2 rows of {row_bytes(256)} bytes"),
        (zeros[:1, :128], place, f"no place for 1 rows of {row_bytes(128)} bytes"),
        (zeros[:, :128], place.view(torch.int8), "no place"),
        (zeros[:, :128], place.T.contiguous().T, "no place"),
    ):
        with pytest.raises(RuntimeError, match=told):
            pack(weight, to)
    cut = torch.zeros(2, row_bytes(256) - 4, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="256 inputs"):
        torch.ops.kogpt.linear(torch.ones(1, 256), cut, None, None, None)


def test_the_op_passes_opcheck():
    """But for shapes without data: whether it succeeds depends on the numbers."""
    weight = normal(6, 256)
    opcheck(torch.ops.kogpt.pack, (weight, new_packed(weight)), test_utils=("test_schema",))


def test_the_numbers_of_the_header_are_those_of_python():
    header = (building.SOURCES["cpu"] / "packed.h").read_text()
    found = re.findall(r"^constexpr int64_t (\w+) = ([\d <]+);", header, re.MULTILINE)
    assert {name: eval(number) for name, number in found} == {
        "kCodes": CODES,
        "kPackedInputs": BLOCK,
        "kRareShare": RARE_SHARE,
        "kKeptShare": KEPT_SHARE,
        "kMostPacked": MOST_INPUTS,
        "kRowMultiple": ROW_MULTIPLE,
    }
