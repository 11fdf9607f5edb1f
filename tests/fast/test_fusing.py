"""Several matrices as one: the same weights, in the formats they had."""

import pytest
import torch

from kogpt.fast.fusing import common_format, side_by_side
from kogpt.kernels import Weight
from tests.kernels.products import random_weight

# Dtype or bits, and inputs of a group, of each part.
PARTS = {
    "floats": [(torch.float16, 0), (torch.float16, 0), (torch.float16, 0)],
    "one scale a row": [(8, 0), (8, 0)],
    "groups": [(4, 64), (4, 64), (4, 64)],
    "groups of several sizes": [(4, 64), (4, 96), (4, 192)],
    "8 bits and 4": [(8, 0), (4, 32)],
    "8 bits and floats": [(8, 0), (torch.bfloat16, 0)],
    "floats of two kinds": [(torch.float32, 0), (torch.bfloat16, 0)],
}


def weights(parts: list, offset: bool) -> list[Weight]:
    """One weight of each, with the same outputs and more and more inputs."""
    return [
        random_weight(format, 5, 192 * (1 + i), group, offset=offset)
        for i, (format, group) in enumerate(parts)
    ]


def fuse(parts: list[Weight], dtype: torch.dtype) -> Weight:
    return side_by_side(parts, common_format(parts, dtype))


@pytest.mark.parametrize("offset", [False, True], ids=["symmetric", "offset"])
@pytest.mark.parametrize("name", PARTS)
def test_the_matrix_is_the_parts_side_by_side(name, offset):
    parts = weights(PARTS[name], offset)
    fused = fuse(parts, torch.float32)
    expected = torch.cat([part.dequantize(torch.float32) for part in parts], 1)
    assert fused.dequantize(torch.float32).equal(expected) and fused.shape == expected.shape


def test_equal_formats_are_kept_and_others_widened():
    for name, parts in PARTS.items():
        fused = fuse(weights(parts, offset=False), torch.bfloat16)
        kinds = {format for format, _ in parts}
        if kinds <= {8} or kinds <= {4}:
            assert fused.bits in kinds and fused.scale is not None, name
        else:
            kept = kinds.pop() if len(kinds) == 1 else torch.bfloat16
            assert fused.scale is None and fused.values.dtype == kept, name


def test_groups_become_as_small_as_all_of_them_need():
    fused = fuse(weights(PARTS["groups of several sizes"], False), torch.float32)
    assert fused.group_size == 32


def test_a_part_alone_is_left_as_it_is():
    alone = random_weight(4, 5, 256, 32, offset=True)
    assert fuse([alone], torch.bfloat16).values is alone.values


def test_a_part_in_the_format_of_others_has_more_scales():
    """So parts that come one under the other are one matrix too."""
    parts = [random_weight(4, 5, 256, group) for group in (64, 128)]
    format = common_format(parts, torch.float32)
    for part in parts:
        alone = side_by_side([part], format)
        assert alone.group_size == 64
        assert alone.dequantize(torch.float32).equal(part.dequantize(torch.float32))


def test_an_offset_of_some_parts_is_not_lost():
    """With zero points and without are two formats."""
    parts = [random_weight(4, 5, 256, 32, offset=offset) for offset in (True, False)]
    expected = torch.cat([part.dequantize(torch.float32) for part in parts], 1)
    assert fuse(parts, torch.float32).dequantize(torch.float32).equal(expected)
