"""Layers that keep a state instead of keys, and caches that count otherwise than the tokens."""

import dataclasses

import pytest
import torch

from kogpt.adapters import PromptConfig, attach_prompt
from kogpt.errors import KoGPTError
from kogpt.evaluation.likelihood import Query, log_likelihoods
from kogpt.generation import DraftModel, PromptLookup, SamplingParams, generate, score
from kogpt.model import Attention, Block, KoGPT, KVCache
from kogpt.model.transformer import Transformer
from kogpt.training.shared_prefix import hidden_states
from tests.generation.conftest import TINY

CONFIG = dataclasses.replace(TINY, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)


class Recurrence(Attention):
    """What was seen fades by half with every token."""

    def forward(self, x, rotate, cache, starts):
        B, T, _ = x.shape
        seen = 0 if cache is None else cache.length
        state = torch.zeros_like(x[:, 0]) if cache is None else cache.state(self.layer, x[:, 0])
        first = torch.zeros(B, 1) if starts is None else starts.view(B, -1)
        is_text = torch.arange(seen, seen + T) >= first  # (B, T)
        states, last = [], state
        for t, value in enumerate(self.v_proj(x).unbind(1)):
            last = torch.where(is_text[:, t, None], 0.5 * last + value, last)
            states.append(last)
        if cache is not None:
            state.copy_(last)
        return self.out_proj(torch.stack(states, dim=1))


class Mixed(Block):
    """Every other layer attends."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        if layer % 2 == 0:
            self.attn = Recurrence(config, layer)


class Recurrent(KoGPT):
    block_class = Mixed


@pytest.fixture(scope="module")
def recurrent():
    torch.manual_seed(0)
    model = Recurrent(CONFIG).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model


PROMPTS = ["한국어 영화", "배우들의 연기는 좋았는데", "음악", "이야기가 너무 뻔해서 아쉽네요"]


@pytest.mark.parametrize("asked", [{"n": 2, "seed": 3}, {"num_beams": 3, "temperature": 0}])
@pytest.mark.parametrize("how", [{}, {"prefill_chunk": 3}, {"batch_size": 1}])
def test_what_is_written_with_the_cache_is_what_is_written_without(
    recurrent, tokenizer, asked, how
):
    params = SamplingParams(max_new_tokens=12, **asked)
    wanted = generate(recurrent, tokenizer, PROMPTS, params, use_cache=False)
    found = generate(recurrent, tokenizer, PROMPTS, params, **how)
    assert [each.token_ids for each in found] == [each.token_ids for each in wanted]


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_likelihoods_are_those_of_each_text_alone(recurrent, prefix, batch_size):
    draw = torch.Generator().manual_seed(1)

    def some(count):
        return tuple(torch.randint(CONFIG.vocab_size, (count,), generator=draw).tolist())

    shared = some(prefix)
    queries = [
        Query(shared + some(3 + i % 2), (some(3), (*some(1), 7, 8), (7,), some(5)))
        for i in range(5)
    ]
    for query, answers in zip(
        queries, log_likelihoods(recurrent, queries, batch_size), strict=True
    ):
        for continuation, answer in zip(query.continuations, answers, strict=True):
            ids = torch.tensor([query.context + continuation])
            logprobs = recurrent(ids[:, :-1])[0].log_softmax(-1)[len(query.context) - 1 :]
            wanted = logprobs.gather(1, torch.tensor(continuation)[:, None]).sum().item()
            assert answer.value == pytest.approx(wanted, abs=1e-4)


def test_a_wrong_guess_cannot_be_taken_out_of_a_state(recurrent, tokenizer):
    params = SamplingParams(temperature=0, max_new_tokens=30)
    with pytest.raises(
        KoGPTError, match="keeps a state in its cache: generate without speculation"
    ):
        generate(recurrent, tokenizer, "영화 영화 영화 영화", params, speculate=PromptLookup(1))


def test_a_draft_model_that_keeps_a_state_reads_again_what_it_guessed_wrong(recurrent, tokenizer):
    torch.manual_seed(2)
    model = KoGPT(CONFIG).eval()
    params = SamplingParams(temperature=0, max_new_tokens=20)
    (wanted,) = generate(model, tokenizer, "영화", params)
    (found,) = generate(model, tokenizer, "영화", params, speculate=DraftModel(recurrent, 2))
    assert found.token_ids == wanted.token_ids
    assert not recurrent.training


def test_a_state_is_of_one_kind():
    cache, like = KVCache(4), torch.zeros(2, 8)
    assert cache.state(0, like) is cache.state(0, like)
    with pytest.raises(ValueError, match=r"state 0 of the cache is \(2, 8\) .* would be \(2, 9\)"):
        cache.state(0, torch.zeros(2, 9))
    with pytest.raises(ValueError, match="float32 cpu and would be .* torch.float64 cpu"):
        cache.state(0, like.double())


def test_a_cache_with_a_state_forgets_all_or_goes_back_to_a_mark(recurrent):
    ids = torch.arange(3, 15).view(2, 6)
    cache = KVCache(16)
    recurrent(ids[:, :2], cache)
    mark, wanted = cache.mark(), recurrent(ids[:, 2:4], cache)
    recurrent(ids[:1, 4:], cache.first(1))  # writes over nothing of the whole
    torch.testing.assert_close(recurrent(ids[:, 4:], cache), recurrent(ids)[:, 4:])
    with pytest.raises(
        ValueError, match="cannot truncate a cache of 6 tokens to 2: it holds a sta"
    ):
        cache.truncate(2)
    cache.go_back(mark)
    assert recurrent(ids[:, 2:4], cache).equal(wanted)
    cache.truncate(0)
    assert recurrent(ids[:, :2], cache).equal(recurrent(ids[:, :2], KVCache(16)))
    assert cache.nbytes == 4 * 2 * CONFIG.n_embd * (2 * 16 * (CONFIG.n_layer // 2) + 1)


def test_a_mark_of_an_empty_cache_is_an_empty_cache(recurrent):
    ids = torch.arange(3, 15).view(2, 6)
    cache = KVCache(16)
    mark, wanted = cache.mark(), recurrent(ids, cache)
    cache.go_back(mark)
    assert cache.length == 0 and recurrent(ids, cache).equal(wanted)


def test_virtual_tokens_are_not_read_once_by_a_layer_that_keeps_a_state():
    torch.manual_seed(0)
    model = Recurrent(CONFIG).eval()
    attach_prompt(model, PromptConfig(4, "none"))
    text = torch.arange(3, 15).view(3, 4)
    x = torch.cat((torch.tensor([model.prefix_ids]).expand(3, -1), text), dim=1)
    torch.testing.assert_close(hidden_states(model, x), model.transformer(x), rtol=0, atol=1e-6)


def test_what_a_cache_does_not_know_of_cannot_be_put_there():
    with pytest.raises(AttributeError, match="last"):
        KVCache(4).last = {}


class Registers(Transformer):
    """Three learnt vectors before every text, which the cache counts as tokens."""

    def __init__(self, config, blocks, rotary):
        super().__init__(config, blocks, rotary)
        self.registers = torch.nn.Parameter(torch.randn(3, config.n_embd))

    def forward(self, input_ids, cache=None, starts=None):
        x, first = self.wte(input_ids), 0 if cache is None else cache.length
        if not first:
            x = torch.cat((self.registers.expand(len(x), -1, -1), x), dim=1)
        rotate = self.rotary(torch.arange(first, first + x.size(1))[None])
        for block in self.h:
            x = block(x, rotate, cache, starts)
        if cache is not None:
            cache.advance(x.size(1))
        return self.ln_f(x)[:, -input_ids.size(1) :]


def test_a_cache_that_counts_more_than_the_tokens_is_refused(tokenizer):
    model = type("With", (KoGPT,), {"transformer_class": Registers})(CONFIG).eval()
    params = SamplingParams(max_new_tokens=8, temperature=0)
    with pytest.raises(KoGPTError, match="the model's cache counts 6 tokens where 3 were read"):
        generate(model, tokenizer, [[5, 6, 7]], params)
    (result,) = generate(model, tokenizer, [[5, 6, 7]], params, use_cache=False)
    assert len(result.token_ids) == 8
    with pytest.raises(ValueError, match="do not fit a cache of"):
        score(model, tokenizer, "배우들의 연기는", batch_size=1)
    with pytest.raises(KoGPTError, match="the model's cache counts 5 tokens where 2 were read"):
        log_likelihoods(model, [Query((5, 6, 7), ((8, 9),)), Query((5, 6, 9), ((8, 9, 10, 11),))])


class Forgetful(Transformer):
    """Reads all anew, whatever the cache holds."""

    def forward(self, input_ids, cache=None, starts=None):
        return super().forward(input_ids, None, starts)


def test_where_nothing_is_kept_all_is_read_at_each_step_or_evaluation_refused(tokenizer):
    torch.manual_seed(3)
    model = type("With", (KoGPT,), {"transformer_class": Forgetful})(CONFIG).eval()
    params = SamplingParams(max_new_tokens=8, temperature=0)
    found, wanted = (
        generate(model, tokenizer, PROMPTS, params, prefill_chunk=2, use_cache=kept)
        for kept in (True, False)
    )
    assert [each.token_ids for each in found] == [each.token_ids for each in wanted]
    queries = [Query((5, 6, 7, last), ((9, 10), (11, 12))) for last in (8, 18)]
    with pytest.raises(KoGPTError, match="the model's cache counts 0 tokens where 3 were read"):
        log_likelihoods(model, queries)
