"""The kernel emulator against PyTorch and the PTX ISA, and each of its traps on a faulty kernel."""

from ctypes import c_void_p

import pytest
import torch

from .emulator.harness import EmulatorError, Run, probe

DTYPES = [torch.float16, torch.bfloat16]
SOURCE = torch.arange(1024, dtype=torch.int32)


def words(x: torch.Tensor) -> torch.Tensor:
    """16-bit elements (..., n) as the words (..., n / 2) that hold them in pairs."""
    return x.contiguous().view(torch.int32)


def named(operation: str, dtype: torch.dtype) -> str:
    return f"{operation}_{str(dtype).removeprefix('torch.')}"


# --- instructions ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_mma_multiplies_the_fragments_that_the_isa_defines(dtype):
    """PTX ISA, figures for mma.m16n8k16: of element i of a fragment in lane l, row and column."""
    a, b, c = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    g, i = torch.arange(32)[:, None] // 4, torch.arange(32)[:, None] % 4  # groupID, threadID
    n = torch.arange(8)
    a_row = g + 8 * ((n // 2) % 2)  # rows 8 on for elements 2, 3, 6 and 7
    a_column = 2 * i + n % 2 + 8 * (n // 4)  # columns 8 on for elements 4 to 7
    b_row = 2 * i + n[:4] % 2 + 8 * (n[:4] // 2)
    c_row, c_column = g + 8 * (n[:4] // 2), 2 * i + n[:4] % 2
    source = [words(a[a_row, a_column]), words(b[b_row, g]), c[c_row, c_column].view(torch.int32)]
    target = torch.empty(32, 4)
    probe(named("multiply", dtype), torch.cat(source, 1), target)
    expected = c.double() + a.double() @ b.double()
    torch.testing.assert_close(target.double(), expected[c_row, c_column], rtol=1e-5, atol=1e-5)


def test_load_matrices_hands_out_pairs_along_the_rows():
    matrices = torch.arange(4 * 8 * 8, dtype=torch.int16).view(4, 8, 8)
    target = torch.empty(32, 4, dtype=torch.int32)
    probe("load_rows", words(matrices), target)
    expected = words(matrices).view(4, 32).T  # lane l: row l / 4, pair l % 4
    assert target.equal(expected)


def test_load_matrices_transposed_hands_out_pairs_along_the_columns():
    matrices = torch.arange(4 * 8 * 8, dtype=torch.int16).view(4, 8, 8)
    target = torch.empty(32, 4, dtype=torch.int32)
    probe("load_rows_transposed", words(matrices), target)
    assert target.equal(words(matrices.mT).view(4, 32).T)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_65536_elements_widen_as_in_pytorch(dtype):
    elements = torch.arange(65536).to(torch.uint16).view(dtype)
    target = torch.empty(65536)
    probe(named("widen", dtype), words(elements), target)
    torch.testing.assert_close(target, elements.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_floats_round_to_nearest_even(dtype):
    """Every finite element, the points half way to the next, and a little to both sides."""
    elements = torch.arange(65536).to(torch.uint16).view(dtype).float()
    elements = elements[elements.isfinite()].sort().values
    middles = (elements[1:].double() + elements[:-1].double()).div(2).float()
    beside = [torch.nextafter(middles, torch.tensor(x)) for x in (-float("inf"), float("inf"))]
    extremes = torch.tensor([float("inf"), float("-inf"), float("nan"), 65519.9, 65520.0, 3.4e38])
    floats = torch.cat([elements, middles, *beside, extremes])
    floats = torch.cat([floats, torch.zeros(-len(floats) % 4096)]).view(-1, 4096)
    for chunk in floats:
        target = torch.empty(4096, dtype=dtype)
        probe(named("narrow", dtype), chunk.contiguous(), words(target))
        torch.testing.assert_close(target, chunk.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_differences_of_elements_are_rounded_as_in_pytorch(dtype):
    """Of any two elements, infinities and subnormal numbers among them."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**15), 2**15, (2048, 2, 2), generator=generator).to(torch.int16)
    pairs = bits.view(dtype)
    target = torch.empty(4096, dtype=dtype)
    probe(named("subtract", dtype), words(pairs), words(target))
    expected = (pairs[:, 0] - pairs[:, 1]).flatten()
    torch.testing.assert_close(target, expected, rtol=0, atol=0, equal_nan=True)


def test_bits_are_masked_and_then_inverted():
    source = torch.arange(32, dtype=torch.int32) * 0x01234567
    target = torch.empty(32, dtype=torch.int32)
    probe("mask", source, target)
    assert target.equal((source & 0xFFFF) ^ 0x00FF00FF)


def test_neighbouring_elements_may_be_of_different_threads():
    target = torch.empty(64, dtype=torch.int16)
    probe("write_elements", SOURCE, target)
    assert target.equal(torch.arange(64, dtype=torch.int16))


def test_transpose_exchanges_rows_and_columns():
    matrix = torch.arange(64, dtype=torch.int16).view(8, 8)
    target = torch.empty(32, dtype=torch.int32)
    probe("transpose", words(matrix), target)
    assert target.equal(words(matrix.T).flatten())


def test_lanes_that_sync_their_warp_may_exchange_words():
    target = torch.empty(128, dtype=torch.int32)
    probe("turn_around", SOURCE, target)
    assert target.equal(torch.arange(128, dtype=torch.int32) ^ 31)


def test_shuffles_exchange_lanes():
    target = torch.empty(32, 5)
    probe("shuffle", SOURCE, target)
    lanes = torch.arange(32)[:, None]
    assert target.equal((lanes ^ torch.tensor([1, 2, 4, 8, 16])).float())


def test_threads_that_sync_their_group_may_exchange_words():
    target = torch.empty(128, dtype=torch.int32)
    probe("turn_around_groups", SOURCE, target)
    assert target.equal(torch.arange(128, dtype=torch.int32) ^ 63)


def test_shuffles_take_the_value_of_a_lane():
    target = torch.empty(32)
    probe("pick_lanes", SOURCE, target)
    assert target.equal((3 * torch.arange(32) % 32).float())


def test_a_vote_holds_for_every_lane_of_its_warp_alone():
    target = torch.empty(64, dtype=torch.int32)
    probe("vote", SOURCE, target)
    assert target.tolist() == [0] * 32 + [1] * 32


def test_copies_that_are_waited_for_arrive():
    target = torch.empty(96, dtype=torch.int32)
    probe("pipeline", SOURCE, target)
    assert target.equal(SOURCE[:96])


# --- blocks ---


def test_the_last_block_may_read_what_all_left_before_they_counted():
    target = torch.zeros(1024, dtype=torch.int32)
    probe("merge", SOURCE, target)
    assert target[0] == 256 and target[1] == 0


def test_an_early_kernel_may_go_on_when_it_has_waited():
    target = torch.zeros(64, dtype=torch.int32)
    probe("double_after_await", SOURCE, target)
    assert target.equal(2 * SOURCE[:64])


def test_blocks_run_in_a_shuffled_order_on_demand():
    orders = []
    for seed in (0, 1, 2, 1):
        target = torch.zeros(17, dtype=torch.int32)
        probe("order", SOURCE, target, seed=seed)
        orders.append(target[1:].tolist())
    assert orders[0] == sorted(orders[0]) and orders[1] == orders[3]
    assert orders[1] != orders[0] and orders[2] not in orders[:2]
    assert sorted(orders[1]) == sorted(orders[2]) == orders[0]


# --- traps ---

FAULTS = {
    "read_shared_out_of_bounds": "load_shared of 4 bytes at offset 1024: the block has 1024 bytes",
    "write_shared_out_of_bounds": "store_shared of 16 bytes at offset 1020: misaligned",
    "read_shared_misaligned": "load_shared of 16 bytes at offset 8: misaligned",
    "write_shared_misaligned": "store_shared of 4 bytes at offset 6: misaligned",
    "load_matrices_out_of_bounds": "thread 63: load_matrices of 16 bytes at offset 1024: the block",
    "read_shared_unwritten": "load_shared at offset 4: never written in this block",
    "read_shared_of_the_block_before": r"block \(1, 0, 0\), .*never written in this block",
    "read_after_write": "thread 1: load_shared at offset 0: written by thread 0, with no sync",
    "write_after_read": "thread 2: store_shared at offset 0: read by thread 1, with no sync",
    "write_after_reads": "thread 62: store_shared at offset 0: read by other threads, with no sync",
    "write_after_write": "thread 1: store_shared at offset 0: written by thread 0, with no sync",
    "read_after_write_of_another_warp": "thread 63: load_shared at offset 124: written by thread",
    "write_after_read_of_another_warp": "thread 40: store_shared at offset 0: read by other",
    "read_after_write_of_another_group": "thread 63: load_shared at offset 0: written by thread 0",
    "end_before_group": "deadlock: thread 0 waits in sync_group; thread 32 has ended",
    "two_groups_at_a_barrier": "sync_group of 32 threads at barrier 1, where thread 63 waits",
    "no_such_barrier": "sync_group at barrier 16",
    "load_matrices_after_write": "load_matrices at offset 0: written by thread 0, with no sync",
    "write_after_load_matrices": "store_shared at offset 496: read by other threads",
    "read_before_wait": "load_shared at offset 0: a copy by thread 0 may still be under way",
    "read_without_commit": "load_shared at offset 0: a copy by thread 0 may still be under way",
    "read_after_the_wait_of_another": "thread 1: load_shared at offset 0: a copy by thread 0 may",
    "read_waited_for_without_barrier": "thread 1: load_shared at offset 0: written by thread 0",
    "copy_over_what_is_read": "copy_async at offset 16: read by thread 0, with no sync_threads",
    "copy_over_a_copy": "copy_async at offset 0: a copy by thread 0 may still be under way",
    "copy_to_misaligned": "copy_async of 16 bytes at offset 8: misaligned",
    "copy_from_misaligned": "copy_async of 16 bytes at 0x.*: misaligned",
    "copy_out_of_bounds": "thread 1: copy_async of 16 bytes at 0x.*: in no tensor",
    "read_global_out_of_bounds": "load_global of 4 bytes at 0x.*: in no tensor",
    "read_global_before_the_start": "load_global of 4 bytes at 0x.*: in no tensor",
    "read_global_misaligned": "load_global of 16 bytes at 0x.*: misaligned",
    "write_global_out_of_bounds": "store_global of 16 bytes at 0x.*: in no tensor",
    "write_global_read_only": "store_global of 4 bytes at 0x.*: the tensor is read-only",
    "prefetch_out_of_bounds": "prefetch of 2 bytes at 0x.*: in no tensor",
    "write_an_element_twice": "thread 1: store_global at 0x.*: stored to by thread 0 of block 0",
    "write_global_twice": r"block \(1, 0, 0\), thread 0: .*: stored to by thread 0 of block 0",
    "read_global_after_write": "thread 1: load_global .*: written by thread 0 of block 0 and not",
    "write_global_after_read": r"block \(1, 0, 0\), thread 0: store_global at 0x.*: read by other",
    "merge_too_late": r"block \(3, 0, 0\), thread 0: .*: written by thread 0 of block 0 and",
    "end_before_barrier": "deadlock: thread 0 waits in sync_threads; thread 60 has ended",
    "end_before_mma": "thread 32 waits in mma<Float16>; thread 40 has ended; thread 41 waits in",
    "barrier_within_a_warp": "waits in shuffle_xor; thread 5 waits in sync_threads; thread 6 waits",
    "different_operations": "thread 33: mma<BFloat16>, while other lanes .* are in mma<Float16>",
    "different_masks": "shuffle_xor with mask",
    "read_before_await": "load_global at 0x.*: kernels before may be writing there, and were not",
    "copy_before_await": "copy_async at 0x.*: kernels before may be writing there, and were not",
    "write_before_await": "store_global at 0x.*: with no await_previous yet",
    "read_after_a_flag_alone": "load_global at 0x.*: kernels before may be writing there, and were",
    "await_a_flag_in_vain": "await_flag at 0x.*: nobody has raised it",
    "too_many_threads": "1056 threads",
    "part_of_a_warp": "48 threads",
    "no_blocks": "grid of 0, 1, 1 blocks",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_trapped(fault):
    with pytest.raises(EmulatorError, match=FAULTS[fault]):
        probe(fault, SOURCE, torch.zeros(1024, dtype=torch.int32))


def test_a_launch_after_a_trap_starts_afresh():
    with pytest.raises(EmulatorError):
        probe("end_before_mma", SOURCE, torch.zeros(1024, dtype=torch.int32))
    test_shuffles_exchange_lanes()


def test_shared_memory_beyond_the_limit_is_refused():
    with pytest.raises(EmulatorError, match="1024 bytes of shared memory, more than there are"):
        probe("shuffle", SOURCE, torch.empty(160), limit=1000)


def test_gaps_between_rows_belong_to_no_tensor():
    """Blocks 0 and 1 of a grid each write the first 64 words of a row."""
    for width, fits in ((64, True), (60, False)):
        run = Run("probes", limit=1024)
        rows = torch.zeros(1, 2, 1, 128, dtype=torch.int32)[..., :width]
        run.register(rows, True)
        pointers = c_void_p(0), c_void_p(rows.data_ptr())
        if fits:
            run.call("emulator_probe", b"write_rows", *pointers)
            assert rows.all()
        else:
            with pytest.raises(EmulatorError, match="thread 60: store_global .* in no tensor"):
                run.call("emulator_probe", b"write_rows", *pointers)
