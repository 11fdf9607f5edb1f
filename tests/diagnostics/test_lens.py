"""What the lens reads off a model: exact weights, the model's own predictions, no trace left."""

import dataclasses
import json
import math

import pytest
import torch
from torch.nn import functional as F

import kogpt
from kogpt.adapters import PromptConfig, attach_prompt
from kogpt.cli import main
from kogpt.diagnostics.lens import attention_weights, look
from kogpt.diagnostics.lens_labels import completed, label_of, piece_of, tokens_of
from kogpt.errors import InputRefusedError, KoGPTError
from kogpt.generation import score
from kogpt.kernels.attention import attention_mask, scores
from kogpt.model import KoGPT
from kogpt.model.transformer import Attention, Block, Transformer
from kogpt.model.variants import GPT2, GPTNeoX
from kogpt.tokenizer import load_tokenizer
from tests.diagnostics.tiny import tiny
from tests.model import swaps
from tests.tokenizer.conftest import write_byte_level

PROMPT = "이 영화는 정말 뚫떪 재미있"  # "떪" is three tokens of one byte each


@pytest.fixture(scope="module")
def nano():
    return kogpt.load()


class Recording(Attention):
    """The model's attention, which keeps the queries and keys it was asked with."""

    def attend(self, q, k, v, starts):
        self.asked = q, k
        return super().attend(q, k, v, starts)


class Windowed(Attention):
    """Sees itself and the two tokens before, the nearer the better (ALiBi)."""

    def attend(self, q, k, v, starts):
        T, S = q.size(1), k.size(1)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        distance = torch.arange(S - T, S)[:, None] - torch.arange(S)
        bias = (-0.5 * distance).masked_fill((distance < 0) | (distance > 2), -math.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


class Summing(Attention):
    def attend(self, q, k, v, starts):
        return super().attend(q, k, 2 * v, starts)


class Failing(Attention):
    def attend(self, q, k, v, starts):
        raise RuntimeError("as on purpose")


def with_attention(kind: type[Attention]) -> type[KoGPT]:
    block = type("OtherBlock", (Block,), {"attention_class": kind})
    return type("OtherKoGPT", (KoGPT,), {"block_class": block})


def assert_untouched(model: KoGPT) -> None:
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert "attend" not in vars(module)


def test_weights_are_the_softmax_of_scaled_products(nano):
    model = tiny(with_attention(Recording))
    lens = look(model, nano[1], PROMPT)
    for layer, block in enumerate(model.transformer.h):
        q, k = block.attn.asked
        expected = scores(q, k, attention_mask(q.size(1), k.size(1), None, q.device)).softmax(3)
        torch.testing.assert_close(lens.attention[layer], expected[0], atol=1e-6, rtol=0)


def test_weights_and_predictions_are_those_of_transformers(nano):
    transformers = pytest.importorskip("transformers")
    sizes = dict(n_positions=32, n_embd=32, n_layer=3, n_head=4, rotary_dim=4, n_inner=40)
    config = transformers.GPTJConfig(vocab_size=8000, attn_implementation="eager", **sizes)
    theirs = transformers.GPTJForCausalLM(config).eval()
    model = tiny()
    theirs.load_state_dict(model.state_dict())
    lens = look(model, nano[1], PROMPT, top=3)
    ids = torch.tensor([[token.piece.id for token in lens.tokens]])
    with torch.no_grad():
        out = theirs(ids, output_attentions=True, output_hidden_states=True)
        states = [theirs.transformer.ln_f(state) for state in out.hidden_states[:-1]]
        states.append(out.hidden_states[-1])  # which transformers has normed already
        expected = torch.stack([theirs.lm_head(state)[0] for state in states]).softmax(-1)
    torch.testing.assert_close(lens.attention, torch.cat(out.attentions), atol=1e-5, rtol=0)
    best, best_ids = expected.topk(3)
    torch.testing.assert_close(lens.layers.top_probabilities, best, atol=1e-5, rtol=0)
    assert torch.equal(lens.layers.top_ids, best_ids)


def test_the_last_row_is_what_the_model_itself_predicts(nano):
    model, tokenizer = nano
    lens = look(model, tokenizer, PROMPT)
    ids = [token.piece.id for token in lens.tokens]
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].softmax(-1)
    best, best_ids = expected.topk(5)
    torch.testing.assert_close(lens.layers.top_probabilities[-1], best, atol=1e-5, rtol=0)
    assert torch.equal(lens.layers.top_ids[-1], best_ids)
    entropy = torch.distributions.Categorical(expected).entropy() / math.log(2)
    torch.testing.assert_close(lens.layers.entropy[-1], entropy, atol=1e-4, rtol=0)
    scored = torch.tensor(score(model, tokenizer, [PROMPT])[0].logprobs[1:]).exp()
    torch.testing.assert_close(lens.layers.next_probability[-1, :-1], scored, atol=1e-5, rtol=0)
    assert lens.following(3, len(ids) - 1) is None
    for position, following in enumerate(ids[1:]):
        order = expected[position].argsort(descending=True).tolist()
        assert lens.following(-1, position)["rank"] == order.index(following) + 1


class Backwards(Transformer):
    """Blocks from the last to the first, called by keywords, and a way around all of them."""

    def forward(self, input_ids, cache=None, starts=None):
        positions = self.positions(input_ids, cache, starts)
        embedded = x = self.embed(input_ids, positions)
        for block in reversed(self.h):
            x = block(x=x, rotate=self.rotary(positions), cache=cache, starts=starts)
        return self.ln_f(x + 3 * embedded)


def test_a_transformer_of_ones_own_is_seen_as_it_runs(nano):
    model = tiny(type("Own", (KoGPT,), {"transformer_class": Backwards}))
    lens = look(model, nano[1], PROMPT)
    ids = torch.tensor([[token.piece.id for token in lens.tokens]])
    expected = model(ids)[0].softmax(-1).topk(5).values
    torch.testing.assert_close(lens.layers.top_probabilities[-1], expected, atol=1e-5, rtol=0)
    first = model.logits(model.transformer.ln_f(model.transformer.wte(ids)))[0].softmax(-1)
    expected = first.topk(5).values
    torch.testing.assert_close(lens.layers.top_probabilities[0], expected, atol=1e-5, rtol=0)


def test_an_attention_of_ones_own_is_seen_as_it_is(nano):
    weights = look(tiny(with_attention(Windowed)), nano[1], PROMPT).attention
    N = weights.size(-1)
    distance = torch.arange(N)[:, None] - torch.arange(N)
    outside = (distance < 0) | (distance > 2)
    assert not weights[..., outside].any() and (weights[..., ~outside] > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, N), atol=1e-6, rtol=0)


CHANGES = [
    one
    for one in vars(swaps).values()
    if isinstance(one, type) and issubclass(one, KoGPT) and one is not KoGPT
]


@pytest.mark.parametrize("kind", [GPT2, GPTNeoX, *CHANGES], ids=lambda kind: kind.__name__)
def test_weights_of_any_architecture_mix_its_values_into_what_it_goes_on_with(nano, kind):
    sizes = dict(vocab_size=8000, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    config = kind.config_class(**sizes, rotary_dim=0 if kind is GPT2 else 4)
    torch.manual_seed(0)
    model = kind(config).eval().requires_grad_(False)
    attention = model.transformer.h[1].attn
    values, mixed = [], []
    attention.v_proj.register_forward_hook(lambda *call: values.append(call[-1][0]))
    attention.out_proj.register_forward_pre_hook(lambda _, inputs: mixed.append(inputs[0][0]))
    lens = look(model, nano[1], PROMPT)
    v = values[0].unflatten(-1, (-1, 8))  # (T, H or less, D)
    v = v.repeat_interleave(4 // v.size(1), dim=1)
    expected = torch.einsum("hts,shd->thd", lens.attention[1], v).flatten(1)
    torch.testing.assert_close(mixed[0], expected, atol=1e-5, rtol=0)
    ids = torch.tensor([[token.piece.id for token in lens.tokens]])
    best = model(ids)[0].softmax(-1).topk(5).values
    torch.testing.assert_close(lens.layers.top_probabilities[-1], best, atol=1e-5, rtol=0)


@pytest.mark.parametrize("S", [5, 8, 19])
def test_shared_key_heads_and_any_number_of_tokens_give_exact_weights(S):
    generator = torch.Generator().manual_seed(S)
    q = torch.randn(1, S, 6, 8, generator=generator)
    k, v = torch.randn(2, 1, S, 2, 8, generator=generator)  # a key head for three heads

    def attend(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)

    mask = attention_mask(S, S, None, q.device)
    expected = scores(q, k.repeat_interleave(3, dim=2), mask).softmax(3)[0]
    found = attention_weights(attend, q, k, v, S)
    torch.testing.assert_close(found[..., 1:], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found[..., 0], torch.ones(6, S), atol=1e-6, rtol=0)


def test_weights_of_a_half_precision_model_are_computed_in_float32(nano):
    lens = look(tiny().bfloat16(), nano[1], PROMPT)
    N = len(lens.tokens)
    assert lens.attention.dtype == torch.float32 and lens.shape["dtype"] == "bfloat16"
    torch.testing.assert_close(lens.attention.sum(-1), torch.ones(3, 4, N), atol=1e-6, rtol=0)


def test_the_last_tokens_are_a_corner_of_the_whole(nano):
    whole = look(*nano, PROMPT)
    part = look(*nano, PROMPT, last=3)
    assert part.tokens == whole.tokens[-3:] and part.skipped == len(whole.tokens) - 3
    torch.testing.assert_close(part.attention, whole.attention[:, :, -3:, -3:], atol=1e-6, rtol=0)
    for field in dataclasses.fields(part.layers):
        corner = getattr(whole.layers, field.name)[:, -3:]
        found = getattr(part.layers, field.name)
        torch.testing.assert_close(found, corner, atol=1e-5, rtol=0, equal_nan=True)


def test_nothing_is_left_in_the_model(nano):
    model = tiny().train()
    before = model(torch.arange(9)[None])
    look(model, nano[1], PROMPT)
    assert_untouched(model)
    assert model.training and torch.equal(model(torch.arange(9)[None]), before)


def test_nothing_is_left_in_a_model_that_fails(nano):
    model = tiny(with_attention(Failing))
    with pytest.raises(RuntimeError, match="as on purpose"):
        look(model, nano[1], PROMPT)
    assert_untouched(model)


def test_a_model_whose_logits_are_nan_is_told(nano):
    model = tiny()
    model.lm_head.bias[40] = math.nan
    with pytest.raises(KoGPTError, match="NaN or infinite"):
        look(model, nano[1], PROMPT)


def test_more_predictions_than_there_are_tokens_are_all_of_them(nano):
    lens = look(tiny(), nano[1], [5, 6], top=9000)
    assert lens.layers.top_ids.size(-1) == 8000


def test_a_long_prompt_is_read_in_parts(nano):
    model, ids = tiny(n_positions=160), list(range(5, 155))
    lens = look(model, nano[1], ids)
    with torch.no_grad():
        best, best_ids = model(torch.tensor([ids]))[0].softmax(-1).topk(5)
    torch.testing.assert_close(lens.layers.top_probabilities[-1], best, atol=1e-5, rtol=0)
    assert torch.equal(lens.layers.top_ids[-1], best_ids)


def test_an_attend_that_was_put_on_an_instance_comes_back(nano):
    model = tiny()
    attention = model.transformer.h[1].attn
    mine = attention.attend = Windowed.attend.__get__(attention)
    weights = look(model, nano[1], PROMPT).attention
    assert attention.attend is mine
    assert not weights[1, :, -1, :-3].any() and weights[0, :, -1, :-3].all()


def test_an_attention_that_does_not_average_is_refused(nano):
    with pytest.raises(ValueError, match="layer 1 does not average values: weights sum to 2"):
        look(tiny(with_attention(Summing)), nano[1], PROMPT)


def test_a_model_prepared_for_decoding_is_refused():
    with pytest.raises(ValueError, match="load it with fast=False"):
        look(*kogpt.load(fast=True), PROMPT)


def test_a_soft_prompt_is_shown_and_looked_at(nano):
    model = tiny()
    attach_prompt(model, PromptConfig(tokens=2), torch.Generator().manual_seed(0))
    lens = look(model, nano[1], PROMPT)
    assert [token.piece.label for token in lens.tokens[:3]] == ["‹prompt 1›", "‹prompt 2›", "[BOS]"]
    assert lens.prompt == PROMPT and lens.attention.size(-1) == len(lens.tokens)
    assert lens.following(0, 0) is None and lens.following(0, 1)["rank"] > 0


@pytest.mark.parametrize("wrong", [{"top": 0}, {"last": 0}])
def test_a_number_below_one_is_refused(nano, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is 0, it must be a whole number"):
        look(*nano, PROMPT, **wrong)


def test_a_prompt_longer_than_the_context_is_refused(nano):
    with pytest.raises(InputRefusedError, match="the prompt has 40 tokens.*32"):
        look(tiny(), nano[1], [5] * 40)


def test_bytes_of_a_syllable_are_shown_as_bytes_and_the_last_one_tells_the_syllable(nano):
    lens = look(*nano, PROMPT)
    shown = [(token.piece.label, token.piece.kind, token.completes) for token in lens.tokens]
    assert shown[1:3] == [("이", "text", ""), ("␣영화는", "text", "")]
    assert shown[-4:-1] == [("‹EB›", "bytes", ""), ("‹96›", "bytes", ""), ("‹AA›", "bytes", "떪")]


def test_a_prediction_tells_the_syllable_that_it_would_complete(nano):
    lens = look(*nano, PROMPT, top=8000)
    behind = {one["id"]: one for one in lens.predictions(-1, len(lens.tokens) - 3)}
    last = nano[1].piece_to_id("<0xAA>")
    assert behind[last]["completes"] == "떪" and behind[last]["piece"] == "‹AA›"
    whole = [one for one in behind.values() if one["piece"] == "␣영화"]
    assert whole and "completes" not in whole[0]


def test_no_replacement_character_is_shown_for_any_piece(nano, tmp_path):
    for tokenizer in (nano[1], load_tokenizer(write_byte_level(tmp_path))):
        labels = [piece_of(tokenizer, id).label for id in range(tokenizer.vocab_size + 2)]
        assert all(labels) and not any("\ufffd" in label for label in labels)


@pytest.mark.parametrize(
    ("data", "label"),
    [
        (" 영화".encode(), "␣영화"),
        ("앉".encode()[:2], "‹EC 95›"),
        ("앉다".encode()[2:], "‹89›다"),
        (b" " + "앉".encode()[:1], "␣‹EC›"),
        (b"\n\t", "↵⇥"),
        (b"\x00", "‹U+0000›"),
        ("\u202e\u200b\ufffd".encode(), "‹U+202E›‹U+200B›‹U+FFFD›"),
    ],
)
def test_what_cannot_be_seen_is_named(data, label):
    assert label_of(data)[0] == label


def test_a_character_that_others_broke_is_not_completed():
    first, rest = "앉".encode()[:1], "앉".encode()[1:]
    assert completed(first, rest) == "앉" and completed(first, rest[:1]) == ""
    assert completed(first, b"a" + rest) == "" and completed(b"", rest) == ""


def test_a_special_token_breaks_a_character(nano):
    tokenizer = nano[1]
    first, second, third = (tokenizer.piece_to_id(f"<0x{byte:02X}>") for byte in "떪".encode())
    whole = tokens_of(tokenizer, [first, second, third])
    broken = tokens_of(tokenizer, [first, second, tokenizer.eos_id, third])
    assert [token.completes for token in whole] == ["", "", "떪"]
    assert [token.completes for token in broken] == ["", "", "", ""]


def test_the_command_prints_all_of_it_as_json(capsys, nano):
    assert main(["lens", PROMPT, "--json", "--top", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = look(*nano, PROMPT, top=2)
    torch.testing.assert_close(torch.tensor(found["attention"]), expected.attention)
    assert found["layers"][6][3]["top"] == expected.predictions(6, 3)
    assert found["tokens"][-2]["completes"] == "떪" and found["skipped"] == 0


def test_the_command_tells_each_layers_predictions_and_what_it_leaves_out(capsys, nano):
    assert main(["lens", PROMPT, "--last", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == f"the last 2 of {len(look(*nano, PROMPT).tokens)} tokens are shown\n"
    assert [line.split("  ")[0] for line in out.splitlines()] == ["embedding"] + [
        f"layer {n}" for n in range(1, 7)
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top", "0"], "--top: must be at least 1"),
        (["--last", "0"], "--last: must be at least 1"),
        (["--output", "page.txt"], "--output: must end in .html"),
        (["--png", "picture.jpg"], "--png: must end in .png"),
        (["--output", "no/such/folder/page.html"], "no such folder"),
    ],
)
def test_wrong_usage_of_the_command_is_told_in_one_line(capsys, options, words):
    assert main(["lens", PROMPT, *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1
