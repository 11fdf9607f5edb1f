"""Whatever dtype and device torch makes tensors of by default, models are loaded and run alike."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

import kogpt
from kogpt.adapters import LoRAConfig, attach_lora, write_adapter
from kogpt.box import BOX
from kogpt.checkpoint import ConversionOptions, convert
from kogpt.model.rotary import RotaryEmbedding

DTYPES = [torch.float64, torch.bfloat16, torch.float16]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    """The box in int8, and an adapter of it."""
    folder = tmp_path_factory.mktemp("int8")
    convert(BOX, folder / "int8", ConversionOptions(quantize="int8"))
    model, _ = kogpt.load()
    attach_lora(model, LoRAConfig(targets="fc_in", rank=2), torch.Generator().manual_seed(1))
    for name, parameter in model.named_parameters():
        parameter.data.add_(0.01 * ("lora_B" in name))
    write_adapter(folder / "lora", model)
    return folder / "int8", folder / "lora"


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_tables_are_the_same(dtype):
    expected = RotaryEmbedding(64, 2048).table
    with default_dtype(dtype):
        assert RotaryEmbedding(64, 2048).table.equal(expected)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_texts_are_the_same(dtype, fast, int8):
    params = kogpt.SamplingParams(
        temperature=0, max_new_tokens=8, logit_bias={300: 1.2345}, logprobs=0
    )
    folder, lora = int8
    told = []
    for within in (contextlib.nullcontext(), default_dtype(dtype)):
        with within:
            found = []
            for model, tokenizer in (
                kogpt.load(fast=fast, dtype=torch.float32),
                kogpt.load(folder, fast=fast, dtype=torch.float32, adapter=lora),
            ):
                (result,) = kogpt.generate(model, tokenizer, "이 영화는", params)
                found.append((result.token_ids, result.logprobs))
            told.append(found)
    assert told[0] == told[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("fast", [False, True])
def test_a_number_is_a_gpu_and_never_the_cpu(fast):
    with pytest.raises((RuntimeError, AssertionError), match="CUDA|NVIDIA"):
        kogpt.load(fast=fast, device=0)


@pytest.mark.parametrize("fast", [False, True])
def test_files_are_read_to_the_device_that_is_asked_for(fast, int8):
    folder, lora = int8
    expected = [kogpt.load(fast=fast)[0], kogpt.load(folder, fast=fast, adapter=lora)[0]]
    with torch.device("meta"):
        found = [kogpt.load(fast=fast)[0], kogpt.load(folder, fast=fast, adapter=lora)[0]]
    ids = torch.arange(3, 12)[None]
    for a, b in zip(expected, found, strict=True):
        assert b(ids).equal(a(ids))
