"""What a head says of texts is the same alone, in a batch, and by the prepared network."""

import math
from types import SimpleNamespace

import pytest
import torch

import kogpt
from kogpt.adapters import LoRAConfig, PromptConfig, attach_head, attach_prompt, write_adapter
from kogpt.errors import InputRefusedError
from kogpt.evaluation.classifying import Prediction
from tests.adapters.filled import trained_lora

TEXTS = [
    "정말 재미있는 영화!",
    ("배우들 연기가 좋았다", "연기가 참 좋다"),
    "10점 만점에 2점도 아깝다 ㅋㅋㅋㅋ 시간 낭비 ㅠㅠ",
    "음",
]


@pytest.fixture(scope="module")
def tokenizer():
    return kogpt.load_tokenizer()


def headed(outputs: int, prompt: bool = False, labels: list[str] | None = None) -> kogpt.KoGPT:
    model = kogpt.load_model(dtype=torch.float32)
    if prompt:
        attach_prompt(model, PromptConfig(5), torch.Generator().manual_seed(2))
    else:
        trained_lora(model, LoRAConfig())
    attach_head(model, outputs, torch.Generator().manual_seed(1), labels)
    return model


@torch.no_grad()
def by_hand(model, tokenizer, contents) -> torch.Tensor:
    ids = [i for text in contents for i in tokenizer.encode(text, bos=True, eos=True)]
    row = torch.tensor([[*model.prefix_ids, *ids]])
    return model.score(model.transformer(row)[0, -1])


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_head_looks_at_the_last_token_of_each_text(tokenizer, outputs, prompt, batch_size):
    model = headed(outputs, prompt).train()
    found = kogpt.classify(model, tokenizer, TEXTS, batch_size=batch_size)
    assert model.training
    for contents, prediction in zip(TEXTS, found, strict=True):
        contents = [contents] if isinstance(contents, str) else contents
        wanted = by_hand(model.eval(), tokenizer, contents)
        if outputs == 1:  # a number is the mean of both orders
            wanted = (wanted + by_hand(model, tokenizer, contents[::-1])) / 2
        torch.testing.assert_close(torch.tensor(prediction.outputs), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompt", [False, True])
def test_the_prepared_network_and_an_adapters_file_say_the_same(tokenizer, prompt, tmp_path):
    model = headed(2, prompt, ["나쁨", "좋음"])
    write_adapter(tmp_path / "a", model)
    wanted = kogpt.classify(model, tokenizer, TEXTS)
    for fast in (False, True):
        again, _ = kogpt.load(dtype=torch.float32, adapter=tmp_path / "a", fast=fast)
        for one, other in zip(wanted, kogpt.classify(again, tokenizer, TEXTS), strict=True):
            assert other.outputs == pytest.approx(one.outputs, abs=1e-4)
            assert other.labels == one.labels == ("나쁨", "좋음")


def test_dropout_does_not_count_and_weights_may_be_narrow(tokenizer):
    model = kogpt.load_model(dtype=torch.bfloat16)
    trained_lora(model, LoRAConfig(dropout=0.5))
    attach_head(model, 2, torch.Generator().manual_seed(1))
    wanted, found = (kogpt.classify(m, tokenizer, TEXTS) for m in (model.eval(), model.train()))
    assert found == wanted


def test_classes_have_probabilities_and_a_number_has_none():
    several = Prediction((0.0, math.log(3.0)), ("나쁨", "좋음"))
    assert several.label == "좋음" and several.value is None
    assert several.probabilities == pytest.approx({"나쁨": 0.25, "좋음": 0.75})
    number = Prediction((2.5,), ("LABEL_0",))
    assert (number.value, number.label, number.probabilities) == (2.5, None, {})


@pytest.mark.parametrize(
    ("texts", "what"), [([b"bytes"], "b'bytes'"), ([()], r"\(\)"), ([("a", 1)], "a"), ([5], "5")]
)
def test_what_is_no_text_is_refused(tokenizer, texts, what):
    with pytest.raises(ValueError, match=f"texts hold .*{what}.*: neither a text nor"):
        kogpt.classify(headed(2), tokenizer, texts)


def test_a_text_beyond_the_context_and_a_model_without_a_head_are_refused(tokenizer):
    parts = tokenizer.encode("영화 " * 1100)
    fits, long = (tokenizer.decode(parts[:n]) for n in (1022, 1023))  # and begin and end
    assert len(tokenizer.encode(fits)) == 1022
    kogpt.classify(headed(2), tokenizer, [fits])
    with pytest.raises(InputRefusedError, match="text 1: it has 1025 tokens, .* holds 1024"):
        kogpt.classify(headed(2), tokenizer, ["짧은 글", long])
    with pytest.raises(ValueError, match="the model has no head"):
        kogpt.classify(kogpt.load_model(), tokenizer, ["글"])
    with pytest.raises(ValueError, match="batch_size is 0"):
        kogpt.classify(headed(2), tokenizer, ["글"], batch_size=0)
    assert kogpt.classify(headed(2), tokenizer, []) == []
    bare = SimpleNamespace(bos_id=None, eos_id=None, encode=lambda text, **_: [7] * len(text))
    with pytest.raises(InputRefusedError, match="text 1: it is empty"):
        kogpt.classify(headed(2), bare, ["글", ""])
    one, same = (kogpt.classify(headed(2), tokenizer, texts) for texts in ("글", ["글"]))
    assert one == same


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fast", [False, True])
def test_a_gpu_says_the_same(tokenizer, fast, tmp_path):
    write_adapter(tmp_path / "a", model := headed(2))
    there, _ = kogpt.load(dtype=torch.float32, device="cuda", adapter=tmp_path / "a", fast=fast)
    wanted, found = (kogpt.classify(each, tokenizer, TEXTS) for each in (model, there))
    for one, other in zip(wanted, found, strict=True):
        assert other.outputs == pytest.approx(one.outputs, abs=1e-3)
