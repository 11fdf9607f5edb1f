"""A checkpoint with the head of a classifier beside the language model."""

import json

import pytest
import torch

from kogpt.adapters import attach_head, load_classifier
from kogpt.checkpoint import (
    ConversionOptions,
    convert,
    inspect,
    load_model,
    verify,
    write_checkpoint,
)
from kogpt.errors import InputRefusedError
from tests.checkpoint.tiny import CONFIG, tiny_state


def write(folder, model, outputs, **options):
    attach_head(model, outputs, torch.Generator().manual_seed(1))
    write_checkpoint(folder, CONFIG, model.state_dict(), **options)


@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_transformers_opens_it_with_the_same_logits(outputs, model, ids, tmp_path):
    transformers = pytest.importorskip("transformers")
    write(tmp_path / "c", model, outputs)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "c", dtype=torch.float32
    ).eval()
    assert theirs.config.num_labels == outputs
    kind = "regression" if outputs == 1 else "single_label_classification"
    assert theirs.config.problem_type == kind
    ours = load_classifier(tmp_path / "c")
    for row in ids:  # a batch of one needs no padding id in transformers
        wanted = theirs(row[None]).logits
        found = ours.score(ours.transformer(row[None])[:, -1])
        assert torch.allclose(found, wanted, rtol=0, atol=1e-5)


def test_labels_are_those_of_the_config(model, tmp_path):
    write(tmp_path / "c", model, 2, labels=["부정", "긍정"])
    values = json.loads((tmp_path / "c" / "config.json").read_text())
    assert values["id2label"] == {"0": "부정", "1": "긍정"}
    assert values["label2id"] == {"부정": 0, "긍정": 1}
    assert load_classifier(tmp_path / "c").score.labels == ("부정", "긍정")
    with pytest.raises(ValueError, match="there are 1 labels, the head has 2 outputs"):
        write_checkpoint(tmp_path / "d", CONFIG, model.state_dict(), labels=["한쪽"])


def test_the_head_stays_in_float32_beside_narrower_weights(model, tmp_path):
    model.bfloat16()
    write(tmp_path / "c", model, 2)
    values = json.loads((tmp_path / "c" / "config.json").read_text())
    assert values["dtype"] == "bfloat16"
    loaded = load_classifier(tmp_path / "c")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.score.weight, model.score.weight)


def test_everything_else_passes_the_head_over(model, ids, tmp_path):
    wanted = model(ids)
    write(tmp_path / "c", model, 2)
    assert torch.equal(load_model(tmp_path / "c")(ids), wanted)
    assert verify(tmp_path / "c", quiet=True).tensors == len(tiny_state()) + 1
    assert inspect(tmp_path / "c").ignored == ["score.weight"]
    assert inspect(tmp_path / "c").parameters == CONFIG.num_parameters
    report = convert(
        tmp_path / "c", tmp_path / "int8", ConversionOptions(quantize="int8", quiet=True)
    )
    assert report.ignored == ["score.weight"]
    load_model(tmp_path / "int8")


@pytest.mark.parametrize("shape", [(2, 15), (16,), (0, 16), (2, 16, 1)])
def test_a_head_of_another_shape_is_refused(shape, tmp_path):
    state = {**tiny_state(), "score.weight": torch.zeros(shape)}
    with pytest.raises(InputRefusedError, match=r"score.weight has shape \[.*\], the head"):
        write_checkpoint(tmp_path / "c", CONFIG, state)


def test_a_checkpoint_without_a_head_is_no_classifier(tmp_path):
    write_checkpoint(tmp_path / "c", CONFIG, tiny_state())
    with pytest.raises(InputRefusedError, match="c: score.weight is missing: it has no head"):
        load_classifier(tmp_path / "c")
