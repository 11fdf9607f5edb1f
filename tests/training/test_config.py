"""Settings and their ranges."""

import json
from pathlib import Path

import pytest

from kogpt.training import TrainingConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ()}, "data names no file"),
        ({"batch_size": 0}, "batch_size is 0, it must be a whole number of at least 1"),
        ({"steps": 0}, "steps is 0, it must be a whole number of at least 1"),
        ({"epochs": 0.0}, "epochs is 0.0, it must be a finite number above 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0, it must be a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"beta2": 1.0}, "beta2 is 1.0, it must be a finite number of at least 0 and below 1"),
        (
            {"short_part": 1.5},
            "short_part is 1.5, it must be a finite number of",
        ),
        ({"precision": "float16"}, "precision is 'float16', it must be float32 or bfloat16"),
        (
            {"seed": -1},
            "seed is -1, it must be a whole number of .* at most 4294967295",
        ),
        ({"keep": 0}, "keep is 0, it must be a whole number of at least 1"),
        ({"steps": 2.5}, "steps is 2.5, it must be a whole number"),
        ({"batch_size": 1.5}, "batch_size is 1.5, it must be a whole number"),
        ({"keep": True}, "keep is True, it must be a whole number"),
        ({"weight_decay": float("inf")}, "weight_decay is inf, it must be a finite number"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(change, message):
    given = {"data": (Path("reviews.txt"),), "out": Path("run"), **change}
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**given)


def test_settings_survive_json():
    config = TrainingConfig(data=(Path("a.txt"), Path("b.tsv")), out=Path("run"))
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert config.to_dict()["data"] == ["a.txt", "b.tsv"]
