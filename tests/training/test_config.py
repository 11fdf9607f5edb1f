"""Settings and their ranges."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from kogpt.adapters import LoRAConfig, PromptConfig
from kogpt.training import FinetuningConfig, TrainingConfig


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


OTHERS = {
    "model": "nano",
    "seed": np.int64(3),
    "learning_rate": np.float32(0.5),
    "device": torch.device("cpu"),
}


@pytest.mark.parametrize(
    "config",
    [
        TrainingConfig(
            data="a.txt", out="run", keep=np.int8(2), short_part=np.float64(0), **OTHERS
        ),
        FinetuningConfig(
            data=Path("a.jsonl"), out="run", method="lora", rank=np.int64(4), **OTHERS
        ),
    ],
)
def test_numbers_and_names_of_other_kinds_become_pythons(config):
    """As sweeps have them; what a run is told is written as JSON."""
    told = json.loads(json.dumps(config.to_dict()))
    assert (told["seed"], told["learning_rate"], told["device"]) == (3, 0.5, "cpu")
    assert (told["out"], len(told["data"])) == ("run", 1)
    assert config == type(config)(**{**told, "data": tuple(told["data"])})


def test_numbers_of_an_adapter_become_pythons():
    lora = LoRAConfig(rank=np.int64(4), alpha=np.float32(2), dropout=np.float64(0.5))
    prompt = PromptConfig(np.int64(3), "mlp", np.int32(8))
    assert json.dumps([asdict(lora)["rank"], lora.alpha, lora.dropout]) == "[4, 2.0, 0.5]"
    assert json.dumps([prompt.tokens, prompt.hidden]) == "[3, 8]"


def test_settings_survive_json():
    config = TrainingConfig(data=(Path("a.txt"), Path("b.tsv")), out=Path("run"))
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert config.to_dict()["data"] == ["a.txt", "b.tsv"]
