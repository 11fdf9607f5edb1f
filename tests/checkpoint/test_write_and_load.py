"""What is written is what is loaded, here and in transformers."""

import os
import stat

import pytest
import torch

from kogpt.checkpoint import load_model, open_checkpoint, write_checkpoint
from kogpt.checkpoint.shards import TensorSpec, plan_shards
from kogpt.errors import InputRefusedError
from kogpt.model import KoGPT
from tests.checkpoint.tiny import CONFIG, released_state, tiny_state, write_released

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("max_shard_size", [1, 5000, 10**9])
def test_written_tensors_are_read_back_bit_for_bit(tmp_path, dtype, max_shard_size):
    state = tiny_state(dtype=dtype)
    write_checkpoint(tmp_path / "out", CONFIG, state, max_shard_size=max_shard_size)
    with open_checkpoint(tmp_path / "out") as reader:
        assert reader.config == CONFIG
        assert reader.names == list(state)
        for name, tensor in state.items():
            assert torch.equal(reader.read(name), tensor)
            assert torch.equal(reader.read(name, slice(3, 7)), tensor[3:7])


def test_a_shard_may_be_as_large_as_it_is_allowed_to_be():
    specs = [TensorSpec(name, torch.float32, (4,)) for name in "abcde"]
    shards = plan_shards(specs, 32)
    assert [shard.nbytes for shard in shards] == [32, 32, 16]


def test_transformers_opens_a_written_folder_with_identical_logits(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_checkpoint(tmp_path / "out", CONFIG, tiny_state(), max_shard_size=9000)
    theirs = transformers.GPTJForCausalLM.from_pretrained(tmp_path / "out")
    ours = load_model(tmp_path / "out")
    assert theirs.dtype == torch.float32
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name])
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits, rtol=0, atol=1e-5)


def test_half_on_a_cpu_becomes_float32_unless_asked_for(tmp_path):
    write_released(tmp_path)
    assert load_model(tmp_path).lm_head.weight.dtype == torch.float32
    assert load_model(tmp_path, dtype="float16").lm_head.weight.dtype == torch.float16
    assert load_model(tmp_path, dtype=torch.bfloat16).lm_head.weight.dtype == torch.bfloat16


def test_the_released_layout_loads_directly(tmp_path):
    write_released(tmp_path)
    model = load_model(tmp_path)
    reference = KoGPT(CONFIG).eval()
    state = {n: t.float() for n, t in released_state().items() if not n.endswith("ed_bias")}
    reference.load_state_dict({n: t for n, t in state.items() if not n.endswith("attn.bias")})
    assert torch.equal(model(IDS), reference(IDS))
    assert not model.training
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_an_existing_folder_is_never_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("dear")
    with pytest.raises(InputRefusedError, match="exists already"):
        write_checkpoint(tmp_path / "out", CONFIG, tiny_state())
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["thesis.txt"]


def test_files_get_the_mode_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_checkpoint(tmp_path / "out", CONFIG, tiny_state(), files={"a.txt": b"a"})
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {0o640}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def test_nothing_is_written_where_a_weight_is_not_finite(tmp_path):
    state = tiny_state()
    state["transformer.ln_f.bias"][3] = float("nan")
    with pytest.raises(InputRefusedError, match="transformer.ln_f.bias holds 1 NaN"):
        write_checkpoint(tmp_path / "out", CONFIG, state)
    assert os.listdir(tmp_path) == []
    write_checkpoint(tmp_path / "out", CONFIG, state, allow_nonfinite=["*.ln_f.bias"])
