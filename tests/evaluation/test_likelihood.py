"""Likelihoods of continuations: equal to reading each text alone, with what is shared read once."""

import math
import random

import pytest
import torch

import kogpt
from kogpt.adapters import PromptConfig, attach_prompt
from kogpt.checkpoint import resources
from kogpt.errors import NotEnoughResourcesError, NotFiniteError
from kogpt.evaluation import likelihood
from kogpt.evaluation.likelihood import (
    Likelihood,
    Query,
    SharedReader,
    _sum,
    common_start,
    log_likelihoods,
)
from kogpt.model import KoGPT
from tests.scale import scaled

LETTERS = range(10, 200)


@pytest.fixture(scope="module")
def model() -> KoGPT:
    return kogpt.load_model()


def one_by_one(model: KoGPT, query: Query) -> list[tuple[float, bool]]:
    """The definition: each text read whole, its log-probabilities added up in float64."""
    results = []
    for continuation in query.continuations:
        ids = torch.tensor([query.context + continuation])
        with torch.inference_mode():
            logits = model(ids)[0, len(query.context) - 1 : -1].double()
        targets = ids[0, len(query.context) :]
        values = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        results.append((values.sum().item(), torch.equal(logits.argmax(-1), targets)))
    return results


def random_queries(seed: int, count: int) -> list[Query]:
    """Contexts that share a beginning, continuations that may share one; branches may be empty."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.choices(LETTERS, k=draw.randint(low, high)))

    shared = ids(0, 30)
    queries = []
    for _ in range(count):
        stem = ids(0, 3)
        branches = [ids(0 if stem else 1, 4) for _ in range(draw.randint(1, 4))]
        queries.append(Query(shared + ids(1, 4), tuple(stem + branch for branch in branches)))
    return queries


@pytest.mark.parametrize("seed", range(scaled(4, 100)))
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_likelihoods_are_those_of_each_text_alone(model, seed, batch_size):
    queries = random_queries(seed, 12)
    for query, found in zip(queries, log_likelihoods(model, queries, batch_size), strict=True):
        expected = one_by_one(model, query)
        assert [value for value, _ in found] == pytest.approx(
            [v for v, _ in expected], rel=1e-6, abs=1e-5
        )
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_the_models_own_continuation_is_greedy(model):
    context = (0, 20, 30)
    ids = list(context)
    for _ in range(3):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    (found,) = log_likelihoods(model, [Query(context, (tuple(ids[3:]), (11, 12)))])
    assert [likelihood.greedy for likelihood in found] == [True, False]


def test_the_prepared_network_gives_the_same(model):
    fast, _ = kogpt.load(fast=True)
    queries = random_queries(7, 20)
    for found, expected in zip(
        log_likelihoods(fast, queries, 4), log_likelihoods(model, queries, 4), strict=True
    ):
        assert [x.value for x in found] == pytest.approx([x.value for x in expected], abs=1e-4)


def test_what_is_shared_is_read_once(model):
    read: list[int] = []
    hook = model.transformer.register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].numel())
    )
    shots, label = tuple(range(100, 600)), (7, 8)
    queries = [Query((*shots, 20 + i, 30), ((*label, 40), (*label, 50))) for i in range(8)]
    try:
        log_likelihoods(model, queries, batch_size=8)
    finally:
        hook.remove()
    # The shots once, then of each row its two ids and the label's two; the last ids are not read.
    assert sum(read) == len(shots) + 8 * 4


def test_a_prefix_is_cut_before_what_must_be_read_again(model):
    queries = [Query((1, 2, 3), ((4,),)), Query((1, 2, 3, 5), ((4,),))]
    assert SharedReader(model, queries, 2).prefix == (1, 2)


def test_a_batch_whose_caches_do_not_fit_is_told_before_they_are_made(model, monkeypatch):
    queries = random_queries(3, 4)
    reader = SharedReader(model, queries, batch_size=1000)
    one = reader._cache(1).nbytes
    monkeypatch.setattr(resources, "available_memory", lambda device: 500 * one)
    with pytest.raises(NotEnoughResourcesError, match="the cache of a batch of 1000 rows"):
        log_likelihoods(model, queries, batch_size=1000)
    log_likelihoods(model, queries, batch_size=4)


def test_common_start():
    assert common_start([(1, 2, 3), (1, 2), (1, 2, 4)]) == (1, 2)
    assert common_start([(1,), (2,)]) == ()
    assert common_start([(5, 6)]) == (5, 6)


def test_padding_of_a_branch_leaves_no_trace(model):
    """Branches of unequal lengths in one batch, in either order."""
    long, short = (20, 21, 22, 23), (24,)
    queries = [Query((1, 2, i), (long, short) if i % 2 else (short, long)) for i in range(10, 16)]
    for query, found in zip(queries, log_likelihoods(model, queries), strict=True):
        expected = [value for value, _ in one_by_one(model, query)]
        assert [x.value for x in found] == pytest.approx(expected, rel=1e-6, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("fast", [False, True])
def test_a_gpu_gives_the_same(model, fast):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    there, _ = kogpt.load(dtype=torch.float32, device="cuda", fast=fast)
    queries = random_queries(3, 40)
    for found, expected in zip(
        log_likelihoods(there, queries, 4), log_likelihoods(model, queries, 4), strict=True
    ):
        assert [x.value for x in found] == pytest.approx([x.value for x in expected], rel=1e-4)


@pytest.mark.parametrize("answers", [1, 2, 3])
def test_a_last_id_is_predicted_beyond_the_context_whatever_else_is_asked(model, answers):
    """One answer, or several that are equal, share their last id, and still it is not read."""
    context = tuple(random.Random(0).choices(LETTERS, k=model.config.n_positions - 1))
    last = [(20, 30), (20, 30), (20, 31)][:answers]
    query = Query(context, tuple(last))
    assert query.num_read == model.config.n_positions
    (found,) = log_likelihoods(model, [query])
    with torch.inference_mode():
        logits = model(torch.tensor([(*context, 20)]))[0, -2:].double().log_softmax(-1)
    expected = [(logits[0, 20] + logits[1, end]).item() for _, end in last]
    assert [value for value, _ in found] == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_an_answer_is_greedy_if_each_of_its_ids_is():
    parts = [Likelihood(-1.0, True), Likelihood(-2.5, False)]
    assert _sum(parts) == Likelihood(-3.5, False) and _sum(parts[:1]) == Likelihood(-1.0, True)


def test_what_is_no_number_is_no_likelihood():
    model = kogpt.load()[0]
    with torch.no_grad():
        model.lm_head.bias[5] = math.nan
    with pytest.raises(NotFiniteError):
        log_likelihoods(model, [Query((1, 2), ((3,), (4, 5)))], 2)


def test_likelihoods_are_computed_in_float64():
    """Logits that owe nothing to the context, so that what they give is exactly known."""
    model = kogpt.load_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(torch.linspace(1000, 1010, model.config.vocab_size))
        expected = model.lm_head.bias.double().log_softmax(0)[[30, 40, 50]]
    (found,) = log_likelihoods(model, [Query((1, 2), ((30, 40), (50,)))])
    values = [expected[:2].sum().item(), expected[2].item()]
    assert [value for value, _ in found] == pytest.approx(values, rel=1e-12)


def test_what_does_not_go_at_once_is_read_and_judged_in_parts(model, monkeypatch):
    """A prefix of several pieces, and more positions than logits are held of."""
    monkeypatch.setattr(likelihood, "PREFILL", 4)
    monkeypatch.setattr(likelihood, "LOGITS", 3)
    shots = tuple(range(100, 111))
    queries = [Query((*shots, 20 + i), ((*range(30, 38), i), (40,))) for i in range(3)]
    for query, found in zip(queries, log_likelihoods(model, queries), strict=True):
        expected = [value for value, _ in one_by_one(model, query)]
        assert [x.value for x in found] == pytest.approx(expected, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (Query((), ((7,),)), "query 1 has no context"),
        (Query((7,), ()), "query 1 has no continuation"),
        (
            Query((7,), ((8,), (8000,))),
            "an id of query 1 is 8000, it must be a whole number .* 7999",
        ),
        (Query((7, -1), ((8,),)), "an id of query 1 is -1"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_its_number(model, query, told):
    with pytest.raises(ValueError, match=told):
        log_likelihoods(model, [Query((7,), ((8,),)), query])


def test_virtual_tokens_of_a_soft_prompt_may_be_read_and_not_asked():
    model = kogpt.load_model()
    attach_prompt(model, PromptConfig(2))
    prefix = tuple(model.prefix_ids)
    ((found,),) = log_likelihoods(model, [Query((*prefix, 7), ((8,),))])
    assert math.isfinite(found.value)
    with pytest.raises(ValueError, match=f"an id of query 0 is {prefix[1]}"):
        log_likelihoods(model, [Query((7,), (prefix,))])


def test_a_batch_holds_one_query_at_least(model):
    with pytest.raises(ValueError, match="batch_size is 0, it must be"):
        log_likelihoods(model, [Query((7,), ((8,),))], batch_size=0)
