"""Whole generations: how they begin, what they hold, why they end."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from kogpt.errors import InputRefusedError, KoGPTError
from kogpt.generation import PromptLookup, SamplingParams, generate, stream
from kogpt.generation.api import batch_maker
from kogpt.generation.loop import run
from kogpt.generation.requests import _LOCK, _USED, evaluation_mode, make_requests
from kogpt.generation.sample import Sample
from kogpt.generation.sampling import draw, step_words
from kogpt.model import KoGPT
from tests.generation.conftest import TINY
from tests.scale import scaled

PROMPT = "한국어 영화"


def one(model, tokenizer, prompt=PROMPT, **params):
    (result,) = generate(model, tokenizer, [prompt], SamplingParams(**params))
    return result


def test_temperature_0_takes_the_most_probable_token_of_the_full_forward(model, tokenizer, no_end):
    result = one(model, tokenizer, temperature=0, max_new_tokens=20, logit_bias=no_end)
    ids = list(result.prompt_token_ids)
    for id in result.token_ids:
        logits = model(torch.tensor([ids]))[0, -1, : tokenizer.vocab_size]
        logits[tokenizer.eos_id] = -math.inf
        assert id == logits.argmax()
        ids.append(id)
    assert result.text == tokenizer.decode(ids).removeprefix(PROMPT)
    assert result.seed is None


def test_each_step_draws_with_its_own_word_from_the_stream_of_its_sample(model, tokenizer):
    params = SamplingParams(n=2, seed=2**64 - 1, max_new_tokens=20)
    for result in generate(model, tokenizer, [PROMPT], params):
        ids = list(result.prompt_token_ids)
        for word in step_words(params.seed, result.sample_index, len(result.token_ids)):
            logits = model(torch.tensor([ids]))[:, -1, : tokenizer.vocab_size]
            ids.append(int(draw(logits, word[None])))
        assert ids == result.prompt_token_ids + result.token_ids


def test_ids_without_a_piece_are_never_emitted_however_probable(model, tokenizer):
    for temperature in (0, 1, 5):
        result = one(model, tokenizer, temperature=temperature, seed=0, max_new_tokens=50)
        assert max(result.token_ids) < tokenizer.vocab_size < TINY.vocab_size


def test_results_come_in_the_order_of_prompts_and_samples(model, tokenizer, no_end):
    params = SamplingParams(n=3, seed=1, max_new_tokens=4, logit_bias=no_end)
    prompts = ["한국어 영화 최고", "한", "영화"]
    results = generate(model, tokenizer, prompts, params, batch_size=4)
    places = [(result.prompt_index, result.sample_index) for result in results]
    assert places == [(prompt, sample) for prompt in range(3) for sample in range(3)]
    encoded = [tokenizer.encode(prompt, bos=True) for prompt in prompts]
    assert [result.prompt_token_ids for result in results[::3]] == encoded
    assert len({tuple(result.token_ids) for result in results}) == 9


def test_each_prompt_may_have_its_own_parameters(model, tokenizer, no_end):
    params = [
        SamplingParams(temperature=0, max_new_tokens=9, logit_bias=no_end),
        SamplingParams(seed=1, top_k=4, max_new_tokens=5, logprobs=2),
        SamplingParams(seed=2, max_new_tokens=7, n=2, repetition_penalty=1.5),
        SamplingParams(num_beams=3, n=2, max_new_tokens=6),
    ]
    prompts = ["한", PROMPT, [40, 41], "영화 최고"]
    together = generate(model, tokenizer, prompts, params)
    alone = [
        replace(result, prompt_index=index)
        for index, (prompt, asked) in enumerate(zip(prompts, params, strict=True))
        for result in generate(model, tokenizer, [prompt], asked)
    ]
    assert [(r.prompt_index, r.token_ids, r.text) for r in together] == [
        (r.prompt_index, r.token_ids, r.text) for r in alone
    ]
    with pytest.raises(ValueError, match="4 prompts and 3 params"):
        generate(model, tokenizer, prompts, params[:3])


def test_one_text_counts_as_a_list_of_it(model, tokenizer):
    params = SamplingParams(seed=1, max_new_tokens=3)
    assert generate(model, tokenizer, PROMPT, params) == generate(
        model, tokenizer, [PROMPT], params
    )
    assert generate(model, tokenizer, [], params) == []


def test_prompts_and_parameters_may_come_from_generators(model, tokenizer):
    params = [SamplingParams(max_new_tokens=n, seed=1) for n in (2, 3)]
    found = generate(model, tokenizer, (text for text in ("가", "나")), iter(params))
    assert found == generate(model, tokenizer, ["가", "나"], params)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("lookup", "speculate is 'lookup', it must be a PromptLookup or a DraftModel"),
        (PromptLookup, "speculate is <class .*PromptLookup'>, it must be"),
    ],
)
def test_what_makes_no_guesses_is_refused(model, tokenizer, what, told):
    for call in (generate, stream):
        with pytest.raises(ValueError, match=told):
            list(call(model, tokenizer, "가", speculate=what))


def test_a_drawn_seed_is_told_and_repeats_the_sample(model, tokenizer):
    first = one(model, tokenizer, max_new_tokens=12)
    again = one(model, tokenizer, max_new_tokens=12, seed=first.seed)
    assert again == first
    assert one(model, tokenizer, max_new_tokens=12).seed != first.seed


# ---- beginnings


@pytest.mark.parametrize("length", [63, 64, 65, 640])
def test_a_prompt_up_to_the_context_is_read_and_a_longer_one_refused(model, tokenizer, length):
    prompt = [50] * length
    params = SamplingParams(seed=1, max_new_tokens=5, logit_bias={tokenizer.eos_id: -math.inf})
    if length > TINY.n_positions:
        with pytest.raises(InputRefusedError, match=f"the prompt has {length} tokens.* holds 64$"):
            generate(model, tokenizer, [prompt], params)
        with pytest.raises(InputRefusedError, match=f"{length} tokens"):
            stream(model, tokenizer, prompt, params)
    else:
        (result,) = generate(model, tokenizer, [prompt], params)
        assert result.finish_reason == "context"
        assert len(result.token_ids) == TINY.n_positions - length


def test_an_empty_prompt_begins_from_bos_or_is_refused(model, tokenizer, monkeypatch):
    assert one(model, tokenizer, "", max_new_tokens=2).prompt_token_ids == [tokenizer.bos_id]
    assert one(model, tokenizer, [], max_new_tokens=2).prompt_token_ids == [tokenizer.bos_id]
    monkeypatch.setattr(tokenizer, "bos_id", None)
    monkeypatch.setattr(tokenizer, "add_bos", False)
    with pytest.raises(InputRefusedError, match="the prompt is empty"):
        one(model, tokenizer, "")


@pytest.mark.parametrize("id", [-1, 440, 447, 10**9])
def test_an_id_without_a_piece_is_refused_by_its_number(model, tokenizer, id):
    with pytest.raises(InputRefusedError, match=f"prompt 1 holds id {id},"):
        generate(model, tokenizer, ["한", [5, id]])


def test_ids_in_parameters_must_be_in_the_vocabulary(model, tokenizer):
    for asked in ({"stop_ids": [448]}, {"logit_bias": {448: 1.0}}):
        with pytest.raises(ValueError, match="names id 448, ids end at 447"):
            one(model, tokenizer, **asked)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tokenizer):
    small = KoGPT(replace(TINY, vocab_size=400))
    with pytest.raises(InputRefusedError, match="440 ids, the model 400"):
        generate(small, tokenizer, ["한"])


def test_a_model_whose_logits_are_nan_is_told(tokenizer):
    model = KoGPT(TINY).requires_grad_(False)
    model.transformer.ln_f.weight[0] = math.nan
    for asked in ({"temperature": 0}, {"seed": 1}, {"seed": 1, "top_p": 0.9}, {"num_beams": 2}):
        with pytest.raises(KoGPTError, match="NaN or infinite"):
            one(model, tokenizer, **asked)


def test_dropout_is_off_while_generating_and_on_again_after(model, tokenizer):
    quiet = one(model, tokenizer, seed=1, max_new_tokens=9)
    model.train()
    model.transformer.h[0].eval()
    try:
        assert one(model, tokenizer, seed=1, max_new_tokens=9) == quiet
        assert model.training and not model.transformer.h[0].mlp.training
    finally:
        model.eval()


def test_dropout_comes_back_when_the_last_of_two_users_ends(model, tokenizer):
    model.train()
    try:
        with evaluation_mode(model):
            assert one(model, tokenizer, seed=1, max_new_tokens=3) and not model.training
            model.train()  # of somebody who does not know of us
            with evaluation_mode(model):
                assert not model.training
            assert not model.training
        assert all(module.training for module in model.modules())
    finally:
        model.eval()


def test_while_a_stream_waits_the_model_is_the_caller_s(model, tokenizer):
    params = SamplingParams(seed=1, max_new_tokens=9)
    expected = one(model, tokenizer, seed=1, max_new_tokens=9).text
    pieces = stream(model, tokenizer, PROMPT, params)
    try:
        first = next(pieces)
        model.train()
        assert first + "".join(pieces) == expected and model.training
        left = stream(model, tokenizer, PROMPT, params)
        next(left)
        model.eval()
        left.close()
        assert not model.training
    finally:
        model.eval()


def test_a_stream_that_the_collector_ends_waits_for_no_lock(model, tokenizer):
    """It may do so while this thread holds the lock, in between any two lines."""
    pieces = stream(model, tokenizer, PROMPT, SamplingParams(max_new_tokens=2))
    next(pieces)
    with _LOCK:
        pieces.close()


def test_an_interrupt_leaves_a_model_in_training(model, monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    model.train()
    monkeypatch.setattr(model, "eval", interrupted)
    with pytest.raises(KeyboardInterrupt), evaluation_mode(model):
        pass
    assert model not in _USED and all(module.training for module in model.modules())
    monkeypatch.undo()
    model.eval()


def test_samples_of_a_prompt_share_nothing_that_can_be_changed(model, tokenizer):
    params = SamplingParams(n=2, max_new_tokens=1)
    first, second = generate(model, tokenizer, PROMPT, params)
    first.prompt_token_ids.append(7)
    assert second.prompt_token_ids == first.prompt_token_ids[:-1]


def test_nothing_drawn_has_no_seed(model, tokenizer):
    assert one(model, tokenizer, seed=1, max_new_tokens=0).seed is None


def test_what_is_no_prompt_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="the prompt is None, it must be a text or a list of ids"):
        generate(model, tokenizer, [None])
    with pytest.raises(ValueError, match="params must be SamplingParams: those of the one"):
        stream(model, tokenizer, PROMPT, [SamplingParams()])


def test_ids_that_are_not_in_a_list_of_prompts_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="a prompt of ids goes into a list of prompts"):
        generate(model, tokenizer, [5, 6, 7])


# ---- ends


def test_eos_ends_a_text_and_is_no_part_of_it(model, tokenizer):
    bias = {tokenizer.eos_id: 8.0}
    result = one(model, tokenizer, seed=3, max_new_tokens=60, logit_bias=bias)
    assert result.finish_reason == "eos" and result.stop_reason is None
    assert result.token_ids[-1] == tokenizer.eos_id
    assert tokenizer.eos_id not in result.token_ids[:-1]
    before = [*result.prompt_token_ids, *result.token_ids[:-1]]
    assert result.text == tokenizer.decode(before).removeprefix(PROMPT)


def test_a_stop_id_ends_a_text_and_is_no_part_of_it(model, tokenizer, no_end):
    free = one(model, tokenizer, seed=4, max_new_tokens=20, logit_bias=no_end)
    stop_id = free.token_ids[7]
    first = free.token_ids.index(stop_id)
    result = one(model, tokenizer, seed=4, max_new_tokens=20, logit_bias=no_end, stop_ids=[stop_id])
    assert (result.finish_reason, result.stop_reason) == ("stop", stop_id)
    assert result.token_ids == free.token_ids[: first + 1]
    before = [*result.prompt_token_ids, *result.token_ids[:-1]]
    assert result.text == tokenizer.decode(before).removeprefix(PROMPT)


def test_a_stop_string_ends_a_text_before_itself_and_never_leaks(model, tokenizer, no_end):
    found = 0
    for seed in range(scaled(20, 300)):
        common = {"seed": seed, "max_new_tokens": 30, "logit_bias": no_end}
        free = one(model, tokenizer, **common).text
        stop = free[len(free) // 2 :][: 1 + seed % 4]
        result = one(model, tokenizer, **common, stop=[stop, "없는 말"])
        pieces = list(stream(model, tokenizer, PROMPT, SamplingParams(**common, stop=[stop])))
        assert result.text == free[: free.index(stop)] == "".join(pieces)
        assert (result.finish_reason, result.stop_reason) == ("stop", stop)
        assert all(pieces)
        found += len(stop) > 1
    assert found


def test_what_was_held_back_is_given_when_the_text_ends_otherwise(model, tokenizer, no_end):
    free = one(model, tokenizer, seed=5, max_new_tokens=10, logit_bias=no_end).text
    params = SamplingParams(seed=5, max_new_tokens=10, logit_bias=no_end, stop=[free[-1] + "끝"])
    assert "".join(stream(model, tokenizer, PROMPT, params)) == free


def test_fewer_tokens_than_the_minimum_are_not_the_end(model, tokenizer):
    eager = {tokenizer.eos_id: 30.0, 60: 25.0}
    asked = {"seed": 6, "max_new_tokens": 20, "logit_bias": eager, "stop_ids": [60]}
    assert len(one(model, tokenizer, **asked).token_ids) == 1
    result = one(model, tokenizer, **asked, min_new_tokens=12)
    assert len(result.token_ids) == 13 and result.finish_reason in ("eos", "stop")
    assert not {60, tokenizer.eos_id} & set(result.token_ids[:12])


def test_a_stop_string_within_the_minimum_is_text(model, tokenizer, no_end):
    asked = {"seed": 7, "max_new_tokens": 12, "logit_bias": no_end}
    free = one(model, tokenizer, **asked)
    assert one(model, tokenizer, **asked, stop=[free.text[0]], min_new_tokens=12) == free
    assert one(model, tokenizer, **asked, stop=[free.text[0]]).text == ""


def test_a_stop_string_counts_from_the_token_after_the_minimum_on(model, tokenizer, no_end):
    id = tokenizer.encode("영화")[-1]
    asked = {"temperature": 0, "max_new_tokens": 5, "logit_bias": {**no_end, id: 500.0}}
    assert one(model, tokenizer, **asked).token_ids == 5 * [id]
    letter = tokenizer.decode([id])[-1]
    for least in (0, 1, 2):
        result = one(model, tokenizer, **asked, stop=[letter], min_new_tokens=least)
        assert result.token_ids == (least + 1) * [id]


def test_each_prompt_of_a_batch_gets_as_many_alternatives_as_it_asks_for(model, tokenizer, no_end):
    common = {"logit_bias": no_end, "temperature": 0, "max_new_tokens": 3}
    params = [SamplingParams(logprobs=count, **common) for count in (3, 1, None)]
    results = generate(model, tokenizer, [PROMPT] * 3, params)
    tops = [result.top_logprobs for result in results]
    assert [top and [len(best) for best in top] for top in tops] == [[3] * 3, [1] * 3, None]


def test_a_prompt_of_ids_holds_whole_numbers_and_nothing_else(model, tokenizer):
    wanted = one(model, tokenizer, [5, 60], temperature=0, max_new_tokens=3)
    for ids in (np.array([5, 60]), torch.tensor([5, 60]), (np.int32(5), torch.tensor(60))):
        assert one(model, tokenizer, ids, temperature=0, max_new_tokens=3) == wanted
    for odd in ([0.5], [True], b"ab", ["이 영화는", "배우들"], [torch.tensor(5.0)]):
        with pytest.raises(ValueError, match="it must be a text or a list of ids"):
            next(stream(model, tokenizer, odd))
    for flat in ([5, 60], b"ab", torch.tensor([5, 60]), np.array([5, 60])):
        with pytest.raises(ValueError, match="a prompt of ids goes into a list of prompts"):
            generate(model, tokenizer, flat)
    with pytest.raises(ValueError, match="params must be SamplingParams"):
        generate(model, tokenizer, PROMPT, {"seed": 1})


def test_no_new_tokens_may_be_asked_for(model, tokenizer):
    result = one(model, tokenizer, max_new_tokens=0, echo=True, logprobs=1)
    assert (result.text, result.token_ids, result.finish_reason) == (PROMPT, [], "length")
    assert len(result.prompt_logprobs) == len(result.prompt_token_ids)
    assert one(model, tokenizer, max_new_tokens=0, num_beams=2).finish_reason == "length"


def test_a_text_ends_where_everything_is_banned(model, tokenizer):
    every = dict.fromkeys(range(TINY.vocab_size), -math.inf)
    for asked in ({"temperature": 0}, {"seed": 1}, {"num_beams": 2}):
        result = one(model, tokenizer, logit_bias=every, **asked)
        assert (result.token_ids, result.finish_reason) == ([], "exhausted")
    some = {id: -math.inf for id in every if id not in (60, 61)}
    result = one(model, tokenizer, logit_bias=some, no_repeat_ngram_size=1, seed=1)
    assert (len(result.token_ids), result.finish_reason) == (2, "exhausted")


# ---- processors at work


@pytest.mark.parametrize("seed", range(scaled(8, 200)))
def test_a_banned_word_is_never_written(model, tokenizer, seed, no_end):
    asked = {"seed": seed, "max_new_tokens": 40, "logit_bias": no_end, "temperature": 0.8}
    free = one(model, tokenizer, **asked).text
    cuts = {free[i : i + 1 + seed % 3] for i in range(0, len(free), 3)}
    words = sorted(cut for cut in cuts if "\ufffd" not in cut)
    result = one(model, tokenizer, **asked, banned_words=words)
    text = PROMPT + result.text
    assert not any(word in text[len(PROMPT) - len(word) + 1 :] for word in words)
    assert len(result.token_ids) == 40


def test_a_word_begun_in_the_prompt_is_not_completed(model, tokenizer):
    (id,) = tokenizer.encode("뗄")
    asked = {"temperature": 0, "max_new_tokens": 1, "logit_bias": {id: 60.0}}
    assert one(model, tokenizer, **asked).text == "뗄"
    assert one(model, tokenizer, **asked, banned_words=["영화뗄"]).text != "뗄"
    assert one(model, tokenizer, **asked, banned_words=["화 뗄"]).text == "뗄"


def test_a_bias_lifts_no_ban(model, tokenizer):
    (id,) = tokenizer.encode("뗄")
    asked = {"temperature": 0, "max_new_tokens": 1}
    result = one(model, tokenizer, **asked, logit_bias={id: 60.0}, banned_words=["뗄"])
    assert result.text != "뗄"
    result = one(model, tokenizer, **asked, logit_bias={tokenizer.vocab_size: 60.0})
    assert result.token_ids[0] < tokenizer.vocab_size  # a row to spare, without a piece


def test_padding_is_no_part_of_a_banned_word(model, tokenizer):
    (id,) = tokenizer.encode("뗄")
    params = SamplingParams(
        temperature=0, max_new_tokens=2, logit_bias={id: 60.0}, banned_words=["뗄뗄뗄"]
    )
    prompts = [tokenizer.encode("한국어 영화 최고"), [id]]  # no bos, of which padding would be
    _, short = generate(model, tokenizer, prompts, params)
    assert short.token_ids[0] == id != short.token_ids[1]


def test_no_ngram_is_repeated(model, tokenizer, no_end):
    result = one(
        model, tokenizer, [60] * 8, temperature=0, max_new_tokens=40, no_repeat_ngram_size=2,
        logit_bias=no_end,
    )  # fmt: skip
    ids = [60] + result.token_ids
    bigrams = list(zip(ids, ids[1:], strict=False))
    assert len(set(bigrams)) == len(bigrams) and (60, 60) not in bigrams


# ---- log-probabilities


def test_logprobs_are_those_of_the_full_forward_and_echo_adds_the_prompts(model, tokenizer, no_end):
    result = one(
        model, tokenizer, seed=8, temperature=1.5, top_k=50, max_new_tokens=15,
        logit_bias=no_end, logprobs=3, echo=True,
    )  # fmt: skip
    ids = torch.tensor([result.prompt_token_ids + result.token_ids])
    expected = model(ids)[0].log_softmax(-1)
    found = result.prompt_logprobs[1:] + result.logprobs
    chosen = expected[:-1].gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found), chosen, atol=1e-5, rtol=1e-5)
    tops = result.prompt_top_logprobs[1:] + result.top_logprobs
    for position, top in enumerate(tops):
        best = expected[position].topk(3)
        assert list(top) == best.indices.tolist()
        torch.testing.assert_close(torch.tensor(list(top.values())), best.values)
    assert result.prompt_logprobs[0] is result.prompt_top_logprobs[0] is None
    assert result.text.startswith(PROMPT)


def test_without_being_asked_for_logprobs_are_not_there(model, tokenizer):
    result = one(model, tokenizer, max_new_tokens=2, echo=True)
    assert result.logprobs is result.top_logprobs is result.prompt_logprobs is None
    zero = one(model, tokenizer, max_new_tokens=2, seed=1, logprobs=0)
    assert len(zero.logprobs) == len(zero.token_ids) and not any(zero.top_logprobs)


# ---- streaming and batches


def test_pieces_are_whole_characters_and_join_to_the_text(model, tokenizer, no_end):
    broken = 0
    for seed in range(scaled(15, 300)):
        params = SamplingParams(seed=seed, max_new_tokens=40, echo=seed % 2 == 0)
        pieces = list(stream(model, tokenizer, PROMPT, params))
        (result,) = generate(model, tokenizer, [PROMPT], params)
        assert "".join(pieces) == result.text
        ids = result.prompt_token_ids + result.token_ids
        whole = tokenizer.decode(ids)
        assert result.text == (whole if params.echo else whole.removeprefix(PROMPT))
        broken += "\ufffd" in result.text
    assert broken, "no sample had bytes to put together"


def test_a_prompt_that_ends_inside_a_character_is_continued_inside_it(model, tokenizer):
    han = [tokenizer.piece_to_id(f"<0x{byte:02X}>") for byte in "한".encode()]
    bias = {han[2]: 60.0}
    result = one(model, tokenizer, han[:2], temperature=0, max_new_tokens=1, logit_bias=bias)
    assert result.text == "한"


def test_several_samples_or_beams_are_not_streamed(model, tokenizer):
    for params in (SamplingParams(n=2), SamplingParams(num_beams=2)):
        with pytest.raises(ValueError, match="n and num_beams must be 1"):
            stream(model, tokenizer, PROMPT, params)


def test_short_prompts_go_on_when_a_long_one_beside_them_ends_at_the_context(
    model, tokenizer, no_end
):
    params = SamplingParams(seed=9, max_new_tokens=50, logit_bias=no_end)
    prompts = [[50] * 60, [51] * 3, [52] * 30, [53] * 64]
    together = generate(model, tokenizer, prompts, params)
    assert [len(r.token_ids) for r in together] == [4, 50, 34, 0]
    assert [r.finish_reason for r in together] == ["context", "length", "context", "context"]
    for prompt, result in zip(prompts, together, strict=True):
        assert generate(model, tokenizer, [prompt], params)[0].token_ids == result.token_ids


def test_finished_rows_leave_the_batch_and_prompts_are_read_once(model, tokenizer, no_end):
    params = [
        SamplingParams(n=2, seed=1, max_new_tokens=count, logit_bias=no_end)
        for count in (2, 3, 4, 20)
    ]
    requests = make_requests(model, tokenizer, [PROMPT, "영화", "한", "최고"], params)
    samples = [Sample(request, tokenizer, index) for request in requests for index in range(2)]
    sizes = []
    handle = model.transformer.register_forward_hook(
        lambda _module, args, _output: sizes.append(len(args[0]))
    )
    for _ in run(batch_maker(model, 512, True), samples):
        pass
    handle.remove()
    # Four prompts, then eight rows; half of them are finished after three steps.
    assert sizes == [4, 8, 8, 4, *[2] * 16]


@pytest.mark.parametrize("asked", [{"batch_size": 0}, {"batch_size": 1.5}, {"prefill_chunk": 0}])
def test_impossible_sizes_are_refused(model, tokenizer, asked):
    with pytest.raises(ValueError, match=f"{min(asked)} is .*, it must be a whole number of at l"):
        generate(model, tokenizer, [PROMPT], **asked)


def test_more_alternatives_than_there_are_tokens_are_all_tokens(model, tokenizer):
    result = one(model, tokenizer, seed=1, max_new_tokens=1, logprobs=TINY.vocab_size + 1)
    assert len(result.top_logprobs[0]) == TINY.vocab_size


def test_rows_of_a_tensor_are_prompts_and_truth_is_no_id(model, tokenizer):
    params = SamplingParams(temperature=0, max_new_tokens=2)
    wanted = generate(model, tokenizer, [[5], [60]], params)
    assert generate(model, tokenizer, torch.tensor([[5], [60]]), params) == wanted
    with pytest.raises(ValueError, match="it must be a text or a list of ids"):
        generate(model, tokenizer, [torch.tensor([True, False])])


def widths(model, tokenizer, lengths, **how):
    """Rows and columns of all that the model reads for prompts of these lengths."""
    shapes = []
    handle = model.transformer.register_forward_hook(
        lambda _module, args, _output: shapes.append(tuple(args[0].shape))
    )
    params = SamplingParams(seed=1, max_new_tokens=2, logit_bias={tokenizer.eos_id: -math.inf})
    generate(model, tokenizer, [[50] * length for length in lengths], params, **how)
    handle.remove()
    return shapes


def test_a_prompt_is_read_in_pieces_of_the_size_asked_for(model, tokenizer):
    assert widths(model, tokenizer, [7], prefill_chunk=3) == [(1, 3), (1, 3), (1, 1), (1, 1)]


def test_without_a_cache_everything_is_read_again(model, tokenizer):
    assert widths(model, tokenizer, [7], use_cache=False) == [(1, 7), (1, 8)]


def test_prompts_that_are_about_as_long_run_together(model, tokenizer):
    shapes = widths(model, tokenizer, [9, 2, 8, 3], batch_size=2)
    assert shapes == [(2, 3), (2, 1), (2, 9), (2, 1)]


def test_requests_that_differ_in_their_seed_alone_share_a_processor(model, tokenizer):
    params = [SamplingParams(seed=1), SamplingParams(seed=2), SamplingParams(seed=1, top_k=3)]
    requests = make_requests(model, tokenizer, ["가"] * 3, params)
    first, second, other = (request.processor for request in requests)
    assert first is second is not other


def test_guesses_are_refused_where_one_of_several_prompts_searches(model, tokenizer):
    params = [SamplingParams(seed=1), SamplingParams(num_beams=2)]
    with pytest.raises(ValueError, match="num_beams"):
        generate(model, tokenizer, ["가", "나"], params, speculate=PromptLookup())
