"""Scores of held-out documents, against one document at a time and plain arithmetic."""

import math

import pytest
import torch

from kogpt.model import KoGPT
from kogpt.training.data import encode_documents
from kogpt.training.loss import autocast, score_documents
from tests.training.conftest import SENTENCES, TINY


@pytest.fixture
def model():
    model = KoGPT(TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return model


def plain_nats(model, ids):
    """Each token after the first, predicted within windows of the context, one at a time."""
    ids, context, total = torch.from_numpy(ids.astype("int64")), TINY.n_positions, 0.0
    for t in range(1, len(ids)):
        begin = (t - 1) // context * context
        logits = model(ids[None, begin:t])[0, -1]
        total -= logits.log_softmax(-1)[ids[t]].item()
    return total


@torch.no_grad()
def test_a_score_counts_every_token_but_the_first_once(model, tokenizer):
    texts = ["", "가", *SENTENCES, SENTENCES[0] * 8]  # the last exceeds the context of 32
    documents, _ = encode_documents(texts, tokenizer)
    score = score_documents(model, documents)
    lengths = [len(documents[i]) for i in range(len(documents))]
    assert max(lengths) > 2 * TINY.n_positions
    nats = sum(plain_nats(model, documents[i]) for i in range(len(documents)))
    size = sum(len(text.encode()) for text in texts)
    assert score.tokens == sum(lengths) - len(lengths)
    assert (score.documents, score.text_bytes) == (len(texts) - 1, size)
    assert score.loss == pytest.approx(nats / score.tokens, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_a_model_that_knows_nothing_needs_the_logarithm_of_its_vocabulary(tokenizer):
    model = KoGPT(TINY)
    torch.nn.init.zeros_(model.lm_head.weight)
    documents, _ = encode_documents(["", *SENTENCES], tokenizer)
    assert score_documents(model, documents).loss == pytest.approx(math.log(TINY.vocab_size))


def test_scoring_leaves_a_model_in_training_as_it_was(model, tokenizer):
    documents, _ = encode_documents(["", *SENTENCES], tokenizer)
    model.train()
    score_documents(model, documents)
    assert model.training and all(p.grad is None for p in model.parameters())


def test_scoring_drops_nothing_and_keeps_nothing_for_a_gradient(model, tokenizer):
    documents, _ = encode_documents(["", *SENTENCES], tokenizer)
    expected = score_documents(model, documents)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    wanted = []
    model.transformer.register_forward_hook(lambda *args: wanted.append(args[2].requires_grad))
    assert score_documents(model.train(), documents) == expected
    assert wanted and not any(wanted)


def test_weights_of_16_bits_need_no_autocast(model):
    for dtype, asked in ((torch.float32, True), (torch.bfloat16, False)):
        with autocast(model.to(dtype), "bfloat16"):
            assert torch.is_autocast_enabled("cpu") == asked
    with autocast(model.float(), "float32"):
        assert not torch.is_autocast_enabled("cpu")
