"""The network against itself: cached, chunked, padded, cast, counted."""

import copy
import dataclasses
import inspect
import math

import pytest
import torch
from torch.autograd import gradcheck

from kogpt.model import PRESETS, KoGPT, KoGPTConfig, KVCache, transformer
from kogpt.model.rotary import RotaryEmbedding

CONFIG = KoGPTConfig(
    vocab_size=53, n_positions=48, n_embd=32, n_layer=3, n_head=4, rotary_dim=4, n_inner=56
)


@pytest.fixture(scope="module")
def model() -> KoGPT:
    torch.manual_seed(0)
    model = KoGPT(CONFIG).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def input_ids() -> torch.Tensor:
    return torch.randint(53, (3, 48), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PRESETS)
def test_the_parameter_count_of_a_preset_is_exact(name):
    with torch.device("meta"):
        model = KoGPT(PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) == PRESETS[name].num_parameters


def test_the_default_shape_has_the_published_parameter_count():
    assert KoGPTConfig() == KoGPTConfig.preset("kogpt-6b")
    assert KoGPTConfig().num_parameters == 6_166_502_400


def test_the_network_reads_in_one_sitting():
    assert len(inspect.getsource(transformer).splitlines()) <= 300


@pytest.mark.parametrize("chunk", [1, 5, 16, 47])
def test_chunked_prefill_and_cached_decoding_equal_the_full_forward(model, input_ids, chunk):
    cache = KVCache(48)
    pieces = [model(part, cache) for part in input_ids.split(chunk, dim=1)]
    assert cache.length == 48
    torch.testing.assert_close(torch.cat(pieces, 1), model(input_ids), atol=1e-5, rtol=0)


def test_rows_padded_on_the_left_equal_single_runs(model, input_ids):
    lengths = [48, 7, 30]
    padded = torch.full((3, 48), 9)
    for row, length in enumerate(lengths):
        padded[row, 48 - length :] = input_ids[row, :length]
    logits = model(padded, starts=48 - torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = model(input_ids[row : row + 1, :length])[0]
        torch.testing.assert_close(logits[row, 48 - length :], alone, atol=1e-5, rtol=0)


def test_padded_rows_decode_with_the_cache_as_single_runs_do(model, input_ids):
    starts = torch.tensor([0, 6, 3])
    cache = KVCache(40)
    padded = torch.full((3, 10), 9)
    for row, start in enumerate(starts.tolist()):
        padded[row, start:] = input_ids[row, : 10 - start]
    steps = [model(padded, cache, starts)[:, -1:]]
    steps += [model(input_ids[:, i : i + 1], cache, starts) for i in range(20, 25)]
    for row, start in enumerate(starts.tolist()):
        text = torch.cat((input_ids[row, : 10 - start], input_ids[row, 20:25]))
        alone = model(text[None])[0, 10 - start - 1 :]
        batched = torch.cat(steps, 1)[row]
        torch.testing.assert_close(batched, alone, atol=1e-5, rtol=0)


def test_what_a_cache_held_beyond_its_length_does_not_reach_the_logits(model, input_ids):
    cache = KVCache(48)
    model(input_ids, cache)
    for buffers in cache._layers.values():
        for buffer in buffers:
            buffer[:, :, 20:] = float("nan")
    cache.truncate(20)
    logits = model(input_ids[:, 20:30], cache)
    torch.testing.assert_close(logits, model(input_ids)[:, 20:30], atol=1e-5, rtol=0)


def test_selected_rows_of_a_cache_go_on_as_those_rows_would(model, input_ids):
    cache = KVCache(48)
    model(input_ids[:, :20], cache)
    rows = torch.tensor([2, 0, 2])
    logits = model(input_ids[rows, 20:25], cache.select(rows))
    torch.testing.assert_close(logits, model(input_ids[rows])[:, 20:25], atol=1e-5, rtol=0)


def test_positions_beyond_the_context_are_refused_with_both_numbers(model, input_ids):
    with pytest.raises(ValueError, match="49 tokens exceed the model's context of 48"):
        model(torch.cat((input_ids, input_ids[:, :1]), dim=1))
    cache = KVCache(60)
    model(input_ids, cache)
    with pytest.raises(ValueError, match="49 tokens exceed the model's context of 48"):
        model(input_ids[:, :1], cache)


def test_a_cache_that_is_too_small_is_refused_with_both_numbers(model, input_ids):
    with pytest.raises(ValueError, match="12 tokens do not fit a cache of 11"):
        model(input_ids[:, :12], KVCache(11))


def test_dropout_acts_in_training_only_and_comes_from_the_config(input_ids):
    config = KoGPTConfig(**{**vars(CONFIG), "attn_pdrop": 0.5, "embd_pdrop": 0.0})
    torch.manual_seed(0)
    model = KoGPT(config).eval()
    assert torch.equal(model(input_ids), model(input_ids))
    model.train()
    assert not torch.equal(model(input_ids), model(input_ids))
    quiet = KoGPT(KoGPTConfig(**{**vars(CONFIG), "attn_pdrop": 0.0, "embd_pdrop": 0.0})).train()
    assert torch.equal(quiet(input_ids), quiet(input_ids))


def test_logits_are_float32_in_a_half_precision_model(model, input_ids):
    half = KoGPT(CONFIG).eval()
    half.load_state_dict(model.state_dict())
    half.bfloat16()
    logits = half(input_ids)
    assert logits.dtype == torch.float32
    error = (logits - model(input_ids)).norm() / model(input_ids).norm()
    assert error < 0.05  # bfloat16 keeps 8 bits: 2**-8 a step, over three layers


def test_a_cast_leaves_the_rotary_table_float32_and_a_blank_one_is_made_anew():
    rotary = RotaryEmbedding(8, 2048)
    table = rotary.table.clone()
    assert torch.equal(rotary.half().table, table)
    with torch.device("meta"):
        blank = RotaryEmbedding(8, 2048)
    assert torch.equal(blank.to_empty(device="cpu").table, table)


def test_the_rotation_turns_every_pair_by_its_angle():
    rotary = RotaryEmbedding(6, 100)
    positions = torch.tensor([[0, 1, 50, 99]])
    x = torch.randn(1, 4, 2, 10, dtype=torch.float64)
    expected = x.clone()
    for place, position in enumerate(positions[0].tolist()):
        for pair in range(3):
            angle = position * 10000.0 ** (-2 * pair / 6)
            turn = torch.tensor(
                [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]],
                dtype=torch.float64,
            )
            dims = slice(2 * pair, 2 * pair + 2)
            expected[0, place, :, dims] = x[0, place, :, dims] @ turn.T
    # The table is float32: an angle of up to 99 rad carries an error of up to 4e-6.
    torch.testing.assert_close(rotary(positions)(x), expected, atol=1e-5, rtol=0)


def test_a_rotation_computes_in_float64_what_is_float64():
    rotary = RotaryEmbedding(6, 100)
    x = torch.randn(1, 1, 2, 10, dtype=torch.float64)
    assert rotary(torch.tensor([[0]]))(x).equal(x)  # which turns by nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rotary_dim", "head_dim"), [(6, 7), (8, 8), (0, 4)])
def test_a_traced_rotation_is_the_same_and_so_is_its_gradient(dtype, rotary_dim, head_dim):
    rotate = RotaryEmbedding(rotary_dim, 50)(torch.arange(9)[None])
    x = torch.randn(2, 9, 3, head_dim, dtype=dtype).requires_grad_()
    found = []
    for call in (rotate, torch.compile(lambda x: rotate(x), backend="eager", fullgraph=True)):
        y = call(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), x)))
    for eager, traced in zip(*found, strict=True):
        torch.testing.assert_close(traced, eager, atol=5e-6, rtol=0)


def test_gradients_of_the_network_are_those_of_its_function():
    torch.manual_seed(0)
    config = KoGPTConfig(
        vocab_size=7, n_positions=8, n_embd=8, n_layer=2, n_head=2, rotary_dim=2, n_inner=12
    )
    model = KoGPT(config).double().eval()
    input_ids = torch.randint(7, (2, 5))
    names, parameters = zip(*model.named_parameters(), strict=True)

    def function(*values: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, state, (input_ids,)).logsumexp(-1).sum()

    assert gradcheck(function, parameters, fast_mode=True)


def test_the_network_compiles_without_a_graph_break():
    from torch._dynamo import explain

    model = KoGPT(CONFIG).eval()
    explanation = explain(model)(torch.randint(53, (2, 9)))
    assert explanation.graph_break_count == 0, explanation.break_reasons


@pytest.mark.parametrize("padded", [False, True])
def test_one_graph_serves_any_batch_and_length(padded):
    """Sizes are symbols then, and what is made of them too."""
    model = KoGPT(CONFIG).eval()
    B, T = torch.export.Dim("B", max=64), torch.export.Dim("T", min=2, max=CONFIG.n_positions)

    def inputs(rows: int, length: int) -> tuple[torch.Tensor, None, torch.Tensor | None]:
        ids = torch.randint(CONFIG.vocab_size, (rows, length))
        return ids, None, torch.arange(rows) % 2 if padded else None

    shapes = ({0: B, 1: T}, None, {0: B} if padded else None)
    exported = torch.export.export(model, inputs(3, 7), dynamic_shapes=shapes).module()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for run, sizes in ((exported, [(2, 9), (5, 2)]), (compiled, [(2, 5), (2, 9), (3, 7)])):
        for rows, length in sizes:
            given = inputs(rows, length)
            with torch.no_grad():
                torch.testing.assert_close(run(*given), model(*given))


@pytest.mark.parametrize("change", [(2, 1), (1, 2)])
def test_a_cache_of_another_batch_is_refused(model, change):
    (first, then), cache = change, KVCache(20)
    model(torch.ones(first, 3, dtype=torch.long), cache)
    with pytest.raises(ValueError, match=f"kind: .* are {first} 4 .* and would be {then} 4"):
        model(torch.ones(then, 1, dtype=torch.long), cache)
    assert cache.length == 3


def test_a_cache_of_another_dtype_is_refused(model):
    cache = KVCache(20)
    model(torch.ones(1, 3, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="torch.float32 cpu and would be .* torch.float64 cpu"):
        copy.deepcopy(model).double()(torch.ones(1, 1, dtype=torch.long), cache)


@pytest.mark.parametrize("length", [-1, 4])
def test_a_cache_is_not_truncated_to_what_it_does_not_hold(model, length):
    cache = KVCache(20)
    model(torch.ones(1, 3, dtype=torch.long), cache)
    with pytest.raises(ValueError, match=f"cannot truncate a cache of 3 tokens to {length}"):
        cache.truncate(length)
    assert cache.length == 3


@pytest.mark.parametrize("name", ["attn_pdrop", "embd_pdrop", "resid_pdrop"])
def test_each_dropout_acts_alone(input_ids, name):
    none = dict(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    model = KoGPT(dataclasses.replace(CONFIG, **{**none, name: 0.5})).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert not torch.equal(model(input_ids), model(input_ids))


def test_new_weights_are_drawn_for_norms_too():
    model = KoGPT(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 3.0)
    model.init_weights()
    for norm in (model.transformer.ln_f, model.transformer.h[0].ln_1):
        assert (norm.weight == 1).all() and not norm.bias.any()
