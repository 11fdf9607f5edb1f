"""Every flag of `kogpt generate` reaches its parameter."""

import pytest

from kogpt.cli import build_parser
from kogpt.commands.generate import sampling_params

FLAGS = {
    "--temperature 0.5": {"temperature": 0.5},
    "--top-k 7": {"top_k": 7},
    "--top-p 0.6": {"top_p": 0.6},
    "--min-p 0.1": {"min_p": 0.1},
    "--typical-p 0.7": {"typical_p": 0.7},
    "--repetition-penalty 1.5": {"repetition_penalty": 1.5},
    "--presence-penalty 0.25": {"presence_penalty": 0.25},
    "--frequency-penalty 0.75": {"frequency_penalty": 0.75},
    "--no-repeat-ngram-size 3": {"no_repeat_ngram_size": 3},
    "--logit-bias 5=-2": {"logit_bias": {5: -2.0}},
    "--stop-id 9": {"stop_ids": [9]},
    "--min-new-tokens 2": {"min_new_tokens": 2},
    "--max-new-tokens 30": {"max_new_tokens": 30},
    "-n 4": {"n": 4},
    "--seed 11": {"seed": 11},
    "--logprobs 2": {"logprobs": 2},
    "--no-echo": {"echo": False},
    "--beams 3": {"num_beams": 3, "temperature": 1.0},
    "--beams 3 --length-penalty 2": {"num_beams": 3, "length_penalty": 2.0, "temperature": 1.0},
    "--beams 3 --early-stopping": {"num_beams": 3, "early_stopping": True, "temperature": 1.0},
}


@pytest.mark.parametrize("flags", FLAGS)
def test_a_flag_changes_its_parameter_alone(flags):
    def params(*arguments: str) -> dict:
        args = build_parser().parse_args(["generate", *arguments, "가"])
        return vars(sampling_params(args))

    plain, found = params(), params(*flags.split())
    assert plain["temperature"] == 0.8
    changed = {name: value for name, value in found.items() if value != plain[name]}
    expected = {name: value for name, value in FLAGS[flags].items() if value != plain[name]}
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in changed.items()} == expected
    assert expected
