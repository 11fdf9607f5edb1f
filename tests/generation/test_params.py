"""Parameters: what is refused, and in which words."""

import json
import math

import numpy as np
import pytest

from kogpt.errors import InputRefusedError
from kogpt.generation import SamplingParams


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", -0.1, "a finite number of at least 0 and at most 1000000"),
        ("temperature", math.nan, "a finite number of at least 0 and at most 1000000"),
        ("temperature", math.inf, "a finite number of at least 0 and at most 1000000"),
        ("temperature", "0,8", "a finite number of at least 0 and at most 1000000"),
        ("top_k", -1, "a whole number of at least 0"),
        ("top_k", 2.5, "a whole number of at least 0"),
        ("top_p", 0, "a finite number above 0 and at most 1"),
        ("top_p", 1.01, "a finite number above 0 and at most 1"),
        ("min_p", -0.1, "a finite number of at least 0 and at most 1"),
        ("typical_p", 0.0, "a finite number above 0 and at most 1"),
        ("repetition_penalty", 0, "a finite number of at least 1e-06 and at most 1000000"),
        ("temperature", 1e39, "a finite number of at least 0 and at most 1000000"),
        ("length_penalty", 400, "a finite number of at least -10 and at most 10"),
        ("presence_penalty", 2.1, "a finite number of at least -2 and at most 2"),
        ("frequency_penalty", -2.1, "a finite number of at least -2 and at most 2"),
        ("no_repeat_ngram_size", -1, "a whole number of at least 0"),
        ("min_new_tokens", -1, "a whole number of at least 0"),
        ("max_new_tokens", -1, "a whole number of at least 0"),
        ("max_new_tokens", True, "a whole number of at least 0"),
        ("n", 0, "a whole number of at least 1"),
        ("logprobs", -1, "a whole number of at least 0"),
        ("num_beams", 0, "a whole number of at least 1"),
        ("length_penalty", math.inf, "a finite number of at least -10 and at most 10"),
        ("stop_ids", [-1], "a whole number of at least 0"),
        ("logit_bias", None, "a mapping of ids to what is added"),
        (
            "logit_bias",
            {3: math.inf},
            "a finite number of at least -1e+30 and at most 1e+30, or -inf",
        ),
        ("logit_bias", {-3: 1.0}, "a whole number of at least 0"),
        ("stop", ["a", ""], "texts of at least one character"),
        ("banned_words", [3], "texts of at least one character"),
        ("banned_words", ["\ufffd"], "texts without U+FFFD, which stands for bytes, not text"),
        ("early_stopping", "always", "True, False or 'never'"),
        ("min_new_tokens", 129, "at most max_new_tokens, 128"),
        ("seed", "abc", "a whole number of at least 0 and at most 18446744073709551615"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_allowed_range(name, value, allowed):
    with pytest.raises(ValueError) as refused:
        SamplingParams(**{name: value})
    assert str(refused.value).startswith(name)
    assert str(refused.value).endswith(f"it must be {allowed}")


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1, None])
def test_a_seed_of_64_bits_is_accepted(seed):
    assert SamplingParams(seed=seed).seed == seed


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0])
def test_any_other_seed_is_refused_with_the_range(seed):
    with pytest.raises(ValueError, match="at least 0 and at most 18446744073709551615"):
        SamplingParams(seed=seed)


def test_the_defaults_change_nothing():
    plain = SamplingParams()
    assert (plain.temperature, plain.top_k, plain.top_p, plain.min_p) == (1.0, 0, 1.0, 0.0)
    assert (plain.repetition_penalty, plain.num_beams, plain.n) == (1.0, 1, 1)


def test_one_text_counts_as_a_list_of_it():
    params = SamplingParams(stop="끝", banned_words="나쁜 말")
    assert params.stop == ("끝",) and params.banned_words == ("나쁜 말",)


@pytest.mark.parametrize("name", ["stop", "stop_ids", "banned_words"])
@pytest.mark.parametrize("value", [None, 3])
def test_what_is_no_list_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, it must be"):
        SamplingParams(**{name: value})


def test_decomposed_hangul_is_composed_and_half_characters_are_refused():
    assert SamplingParams(stop="\u1112\u1161\u11ab").stop == ("한",)
    with pytest.raises(InputRefusedError, match="U\\+DCEA"):
        SamplingParams(banned_words=["\udcea"])


@pytest.mark.parametrize(
    "field", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 0.7}, {"seed": 1}]
)
def test_what_a_beam_search_would_ignore_is_refused(field):
    (name,) = field
    with pytest.raises(ValueError, match=name):
        SamplingParams(num_beams=2, **field)
    with pytest.raises(ValueError, match="at most num_beams, 2"):
        SamplingParams(num_beams=2, n=3)


def test_ids_may_come_from_an_iterator():
    assert SamplingParams(stop_ids=map(int, [5, 7])).stop_ids == (5, 7)


@pytest.mark.parametrize("given", [{"length_penalty": 2.0}, {"early_stopping": True}])
def test_what_ranks_beams_is_refused_without_them(given):
    (name,) = given
    with pytest.raises(ValueError, match=f"{name} is of use with num_beams above 1 alone"):
        SamplingParams(**given)
    assert getattr(SamplingParams(num_beams=2, **given), name) == given[name]


def test_a_number_is_no_way_to_stop_early():
    with pytest.raises(ValueError, match="early_stopping is 1, it must be True, False or 'never'"):
        SamplingParams(num_beams=2, early_stopping=1)


def test_numbers_of_other_libraries_become_those_of_python():
    params = SamplingParams(seed=np.uint64(3), temperature=np.float32(0.5), top_k=np.int64(4))
    assert [type(params.seed), type(params.temperature), type(params.top_k)] == [int, float, int]
    assert json.loads(json.dumps(vars(params)))["seed"] == 3


def test_a_word_is_no_truth():
    with pytest.raises(ValueError, match="echo is 'no', it must be True or False"):
        SamplingParams(echo="no")


def test_equal_parameters_are_one_in_a_set():
    params = [SamplingParams(stop=["a"], logit_bias={5: bias}) for bias in (1.0, 1.0, 2.0)]
    assert len(set(params)) == 2
