"""Classes of one's own that the seams do not foresee: every room runs them, or refuses by name."""

import copy
import dataclasses
import hashlib
import inspect
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import kogpt
from kogpt.adapters import (
    LoRAConfig,
    attach_lora,
    load_adapters,
    merge,
    merge_checkpoint,
    write_adapter,
)
from kogpt.adapters.head import attach_head, load_classifier
from kogpt.checkpoint import inspect as inspect_checkpoint
from kogpt.checkpoint import load_model, write_checkpoint
from kogpt.checkpoint.names import count_parameters, refuse_unsavable
from kogpt.diagnostics.diff import find_model
from kogpt.diagnostics.lens import look
from kogpt.diagnostics.trace import trace
from kogpt.errors import InputRefusedError
from kogpt.fast import FastKoGPT, load_fast
from kogpt.model import MLP, Attention, Block, KoGPT, KoGPTConfig, KVCache, source
from kogpt.model.rotary import RotaryEmbedding, Rotation
from kogpt.model.source import SOURCES, change, is_edited
from kogpt.model.transformer import Transformer
from kogpt.model.variants import GPT2, GPTNeoX
from kogpt.training import loss
from kogpt.training.loss import next_token_loss
from kogpt.training.shared_prefix import hidden_states

CONFIG = KoGPTConfig(
    vocab_size=40, n_positions=24, n_embd=32, n_layer=3, n_head=4, rotary_dim=8, n_inner=48
)


def made(model_class: type[KoGPT], std: float = 0.2) -> KoGPT:
    torch.manual_seed(1)
    model = model_class(CONFIG).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=std)
    return model


def ids(B: int = 2, T: int = 12) -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, (B, T), generator=torch.Generator().manual_seed(2))


# --- logits ---


class Softcap(KoGPT):
    def __init__(self, config):
        super().__init__(config)
        self.cap = nn.Parameter(torch.tensor([3.0]))

    def logits(self, hidden):
        return self.cap * torch.tanh(super().logits(hidden) / self.cap)


class TiedInLogits(KoGPT):
    """Its head is the embedding, which `logits` reads from where it is."""

    def make_head(self, config):
        return nn.Identity()

    def logits(self, hidden):
        return F.linear(hidden, self.transformer.wte.weight)


class ProjectedHead(nn.Module):
    """Reads the embedding too, of which it keeps no parameter."""

    def __init__(self, wte):
        super().__init__()
        self.gain, self.rows = nn.Parameter(torch.ones(1)), lambda: wte.weight

    def forward(self, hidden):
        return self.gain * F.linear(hidden, self.rows())


class WithProjectedHead(KoGPT):
    def make_head(self, config):
        return ProjectedHead(self.transformer.wte)


@pytest.mark.parametrize("model_class", [Softcap, TiedInLogits, WithProjectedHead])
def test_what_is_done_to_logits_is_trained_with_its_parameters(model_class):
    model, x = made(model_class), ids()
    summed = next_token_loss(model, x[:, :-1], x[:, 1:])
    summed.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten(), reduction="sum")
    expected.backward()
    torch.testing.assert_close(summed, expected)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4)


def test_an_edited_network_may_use_any_parameter_for_its_logits(monkeypatch):
    model, x = made(KoGPT), ids()
    names = {id(p): name for name, p in model.named_parameters()}
    used = [names[id(p)] for p in loss._parameters_of_logits(model)]
    assert used == ["lm_head.weight", "lm_head.bias"]
    monkeypatch.setattr(loss, "is_unchanged", lambda: False)
    assert len(list(loss._parameters_of_logits(model))) == len(names)
    next_token_loss(model, x[:, :-1], x[:, 1:]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- what is shared ---


class Tied(KoGPT):
    def make_head(self, config):
        head = nn.Linear(config.n_embd, config.vocab_size)
        head.weight = self.transformer.wte.weight
        return head


class OneMatrix(KoGPT):
    """Layers of their own, which have a parameter in common."""

    def __init__(self, config):
        super().__init__(config)
        for block in self.transformer.h[1:]:
            block.mlp.fc_in.weight = self.transformer.h[0].mlp.fc_in.weight


@pytest.mark.parametrize("model_class", [Tied, OneMatrix])
def test_parameters_in_common_stay_so_when_they_are_loaded(model_class, tmp_path):
    model = made(model_class)
    write_checkpoint(tmp_path / "a", CONFIG, model.state_dict(), model_class=model_class)
    loaded = load_model(tmp_path / "a", model_class=model_class)
    assert dict(loaded.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert loaded(ids()).equal(model(ids()))
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(CONFIG, model_class) == expected < count_parameters(CONFIG)


def test_values_that_differ_of_one_parameter_are_refused(tmp_path):
    write_checkpoint(tmp_path / "a", CONFIG, made(KoGPT).state_dict(), model_class=Tied)
    with pytest.raises(InputRefusedError, match=r"lm_head.weight differs from transformer.wte.wei"):
        load_model(tmp_path / "a", model_class=Tied)


def test_an_update_of_one_of_several_layers_is_not_merged(tmp_path):
    model = made(OneMatrix)
    write_checkpoint(tmp_path / "a", CONFIG, model.state_dict(), model_class=OneMatrix)
    attach_lora(model, LoRAConfig(("fc_in",)))
    write_adapter(tmp_path / "b", model)
    with pytest.raises(InputRefusedError, match=r"fc_in cannot be updated alone: .* is transf"):
        merge_checkpoint(tmp_path / "a", tmp_path / "b", tmp_path / "c", model_class=OneMatrix)


class OneBlock(KoGPT):
    def __init__(self, config):
        super().__init__(config)
        self.transformer.h[1] = self.transformer.h[0]


class OneMLP(KoGPT):
    def __init__(self, config):
        super().__init__(config)
        self.transformer.h[2].mlp = self.transformer.h[0].mlp


@pytest.mark.parametrize(("model_class", "part"), [(OneBlock, "h.1"), (OneMLP, "h.2.mlp")])
def test_a_layer_in_two_places_is_refused(model_class, part):
    with pytest.raises(InputRefusedError, match=f"transformer.{part} is transformer.h.0"):
        refuse_unsavable(made(model_class))


def test_a_layer_that_stands_for_several_has_no_cache():
    with pytest.raises(ValueError, match="layer 0 appends twice"):
        made(OneBlock)(ids(), KVCache(24))


class Borrowing(Attention):
    """Of an odd layer, keys and values are those of the layer below."""

    lent: dict

    def forward(self, x, rotate, cache=None, starts=None):
        if self.layer % 2 == 0:
            q, k, v = (self.split_heads(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
            q, k = rotate(q), rotate(k)
            if cache is not None:
                k, v = cache.append(self.layer, k, v)
            type(self).lent = {self.layer: (k, v)}
        else:
            q, (k, v) = rotate(self.split_heads(self.q_proj(x))), self.lent[self.layer - 1]
        return self.resid_dropout(self.out_proj(self.attend(q, k, v, starts).flatten(2)))


class BorrowingBlock(Block):
    attention_class = Borrowing


class WithBorrowing(KoGPT):
    block_class = BorrowingBlock


def test_layers_that_append_nothing_are_passed_over_by_the_cache():
    model, x = made(WithBorrowing), ids()
    whole, cache = model(x), KVCache(24)
    parts = [model(part, cache) for part in x.split([5, 1, 1, 5], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)
    assert len({buffer for buffer in cache._layers}) == 2


def test_a_cache_that_was_left_in_the_midst_goes_on_once_it_is_truncated():
    cache, x = KVCache(4), torch.zeros(1, 1, 1, 8)
    with pytest.raises(ValueError, match="5 tokens do not fit a cache of 4"):
        cache.append(0, x.expand(1, 5, 1, 8), x.expand(1, 5, 1, 8))
    cache.append(0, x, x)
    cache.truncate(0)
    cache.append(0, x, x)
    cache.advance(1)
    cache.append(0, x, x)


# --- what looks in ---


class Twice(Attention):
    def attend(self, q, k, v, starts):
        return super().attend(q, k, v, starts)

    def forward(self, x, rotate, cache=None, starts=None):
        q, k, v = (self.split_heads(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q), rotate(k)
        out = self.attend(q, k, v, starts) - 0.5 * self.attend(q, -k, v, starts)
        return self.resid_dropout(self.out_proj(out.flatten(2)))


class TwiceBlock(Block):
    attention_class = Twice


class Differential(KoGPT):
    block_class = TwiceBlock


def test_attention_that_is_asked_twice_is_neither_drawn_nor_compared():
    model, (tokenizer, text) = made(Differential), (kogpt.load_tokenizer(), "가나")
    with pytest.raises(InputRefusedError, match="attn.* is computed more than once in a pass"):
        trace(model, made(Differential).double(), ids(1))
    whole = Differential(dataclasses.replace(CONFIG, vocab_size=8000))
    with pytest.raises(ValueError, match="layer 1 attends more than once"):
        look(whole.eval(), tokenizer, text)


# --- what is saved ---


class Plain(Attention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.slopes = {"of heads": [2.0 ** -torch.arange(config.n_head)]}


class PlainBlock(Block):
    attention_class = Plain


class WithPlain(KoGPT):
    block_class = PlainBlock


def test_a_tensor_in_an_attribute_is_refused(tmp_path):
    model = made(WithPlain)
    with pytest.raises(InputRefusedError, match=r"h\.0\.attn\.slopes has a tensor that no"):
        refuse_unsavable(model)
    write_checkpoint(tmp_path / "a", CONFIG, model.state_dict(), model_class=WithPlain)
    with pytest.raises(InputRefusedError, match=r"h\.0\.attn\.slopes has a tensor that no"):
        load_model(tmp_path / "a", model_class=WithPlain)


class Recurrent(MLP):
    """Has a layer that keeps its parameters in a list, too."""

    def __init__(self, config):
        super().__init__(config)
        self.rnn = nn.GRU(config.n_embd, config.n_embd, batch_first=True)

    def forward(self, x):
        return super().forward(self.rnn(x)[0])


def with_mlp(mlp: type[MLP]) -> type[KoGPT]:
    return type("With", (KoGPT,), {"block_class": type("Own", (Block,), {"mlp_class": mlp})})


def test_a_layer_of_torch_s_that_lists_its_parameters_comes_back_as_it_was(tmp_path):
    model_class = with_mlp(Recurrent)
    model = made(model_class)
    refuse_unsavable(model)
    write_checkpoint(tmp_path / "a", CONFIG, model.state_dict(), model_class=model_class)
    assert load_model(tmp_path / "a", model_class=model_class)(ids()).equal(model(ids()))


class Stateful(MLP):
    def get_extra_state(self):
        return {"steps": 3}

    def set_extra_state(self, state):
        pass


class Emptied(MLP):
    def __init__(self, config):
        super().__init__(config)
        self.gate = nn.Parameter(torch.zeros(0, 3))


@pytest.mark.parametrize(
    ("mlp", "told"),
    [
        (Stateful, r"h\.0\.mlp\._extra_state is no tensor"),
        (Emptied, r"h\.0\.mlp\.gate is empty"),
    ],
)
def test_what_no_file_of_tensors_holds_is_refused(mlp, told):
    with pytest.raises(InputRefusedError, match=told):
        refuse_unsavable(made(with_mlp(mlp)))


class Counted(MLP):
    """Reads numbers out of a tensor as it is made."""

    read = Tensor.item

    def __init__(self, config):
        super().__init__(config)
        self.rate = self.read(torch.linspace(0, 0.2, config.n_layer)[1])


@pytest.mark.parametrize("read", [Tensor.item, Tensor.tolist, Tensor.numpy, float, bool])
def test_a_class_that_needs_contents_to_be_made_is_refused_by_its_line(read, monkeypatch):
    monkeypatch.setattr(Counted, "read", staticmethod(read))
    line = inspect.getsourcelines(Counted)[1] + 7
    told = rf"test_own_classes\.py:{line}: reads the contents of a tensor in `__init__`"
    with pytest.raises(InputRefusedError, match=told):
        count_parameters(CONFIG, with_mlp(Counted))


class Normed(MLP):
    def __init__(self, config):
        super().__init__(config)
        self.fc_in = weight_norm(self.fc_in)


def test_new_weights_are_drawn_where_torch_computes_them_from_others():
    model, drawn = with_mlp(Normed)(CONFIG), []
    for seed in (0, 1):
        model.init_weights(torch.Generator().manual_seed(seed))
        drawn.append(model.transformer.h[0].mlp.fc_in.weight.detach())
    assert not drawn[0].equal(drawn[1])
    assert drawn[0].std() == pytest.approx(CONFIG.initializer_range, rel=0.1)


class Loaded(MLP):
    """Remembers in a buffer."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("load", torch.zeros(7))


@pytest.mark.parametrize("model_class", [Tied, OneMatrix, with_mlp(Loaded)])
def test_parameters_are_counted_once_and_buffers_are_none(model_class, tmp_path):
    model = made(model_class)
    count = sum(parameter.numel() for parameter in model.parameters())
    write_checkpoint(tmp_path / "a", CONFIG, model.state_dict(), model_class=model_class)
    assert count_parameters(CONFIG, model_class) == count
    assert find_model(tmp_path / "a", model_class).parameters == count
    told = inspect_checkpoint(tmp_path / "a", model_class)
    buffers = {buffer for _, buffer in model.named_buffers() if buffer.numel() == 7}
    cache = KVCache(CONFIG.n_positions)
    model(ids(1, 1), cache)
    assert told.parameters == count
    assert told.memory["float32"] == 4 * (count + 7 * len(buffers)) + cache.nbytes


class LooksAtValues(MLP):
    def forward(self, hidden):
        return super().forward(hidden) + hidden[hidden > 9].sum()


class Tells(MLP):
    def forward(self, hidden):
        self.said = f"{hidden.max():.3f}"
        return super().forward(hidden)


class Faulty(MLP):
    def forward(self, hidden):
        return super().forward(hidden.unheard_of)


class FaultyOfMeta(MLP):
    def forward(self, hidden):
        return super().forward(hidden, meta=True)


def test_a_cache_is_measured_without_values_and_a_fault_is_not_hidden(tmp_path):
    write_checkpoint(tmp_path, CONFIG, made(KoGPT).state_dict())
    wanted = inspect_checkpoint(tmp_path).memory
    for kind in (LooksAtValues, Tells):
        found = inspect_checkpoint(tmp_path, with_mlp(kind)).memory
        assert {**found, "on a CPU": 0} == {**wanted, "on a CPU": 0}  # such a one is not prepared
    with pytest.raises(AttributeError, match="unheard_of"):
        inspect_checkpoint(tmp_path, with_mlp(Faulty))
    with pytest.raises(TypeError, match="unexpected keyword argument 'meta'"):
        inspect_checkpoint(tmp_path, with_mlp(FaultyOfMeta))


class LearnedRotary(RotaryEmbedding):
    """Has a parameter beside the table."""

    def __init__(self, rotary_dim, n_positions):
        super().__init__(rotary_dim, n_positions)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, positions):
        turned = super().forward(positions)
        return Rotation(turned.cos * self.scale, turned.sin * self.scale)


class Slow(RotaryEmbedding):
    """Turns a quarter as fast."""

    def angles(self, device):
        return super().angles(device)[:, torch.arange(self.n_positions) // 4]


class SlowOnce(RotaryEmbedding):
    """The same, as it is made alone."""

    def __init__(self, rotary_dim, n_positions):
        super().__init__(rotary_dim, n_positions)
        self.table = self.table[:, torch.arange(n_positions) // 4]


def with_rotary(rotary: type[RotaryEmbedding]) -> type[KoGPT]:
    def make_rotary(config):
        return rotary(config.rotary_width, config.n_positions)

    return type("With", (KoGPT,), {"make_rotary": staticmethod(make_rotary)})


@pytest.mark.parametrize("rotary", [LearnedRotary, Slow])
def test_what_is_beside_a_derived_table_comes_back_as_it_was(rotary, tmp_path):
    model_class = with_rotary(rotary)
    model = made(model_class)
    refuse_unsavable(model)
    write_checkpoint(tmp_path / "a", CONFIG, model.state_dict(), model_class=model_class)
    loaded = load_model(tmp_path / "a", model_class=model_class)
    assert loaded(ids()).equal(model(ids()))
    assert not model(ids()).equal(made(KoGPT)(ids()))


def test_a_table_that_is_made_anew_as_another_is_refused():
    words = r"rotary\.table is not saved, and not what it is made anew as: .*\.angles"
    with pytest.raises(InputRefusedError, match=words):
        refuse_unsavable(made(with_rotary(SlowOnce)))


class Gated(MLP):
    def __init__(self, config):
        super().__init__(config)
        self.fc_gate = nn.Linear(config.n_embd, config.inner_dim)

    def forward(self, x):
        return self.fc_out(F.silu(self.fc_gate(x)) * self.fc_in(x))


class GatedBlock(Block):
    mlp_class = Gated


class WithGate(KoGPT):
    block_class = GatedBlock


def test_the_head_of_a_classifier_is_loaded_beside_it(tmp_path):
    model = made(WithGate)
    attach_head(model, 3)
    write_checkpoint(tmp_path / "a", CONFIG, model.state_dict(), model_class=WithGate)
    loaded = load_classifier(tmp_path / "a", model_class=WithGate)
    assert type(loaded) is WithGate and loaded.score.weight.equal(model.score.weight)


def test_a_checkpoint_of_ones_own_is_told_where_its_class_would_be_named(tmp_path):
    write_checkpoint(tmp_path / "a", CONFIG, made(WithGate).state_dict(), model_class=WithGate)
    with pytest.raises(InputRefusedError, match=r"fc_gate.* name that by --architecture"):
        load_model(tmp_path / "a")


def test_an_update_of_a_layer_that_is_not_there_is_refused():
    class Bare(MLP):
        def __init__(self, config):
            nn.Module.__init__(self)

        def forward(self, x):
            return x

    class BareBlock(Block):
        mlp_class = Bare

    class WithBare(KoGPT):
        block_class = BareBlock

    with pytest.raises(ValueError, match="targets names 'fc_in', of which WithBare has none"):
        attach_lora(WithBare(CONFIG), LoRAConfig(("q_proj", "fc_in")))


class Dropping(MLP):
    def __init__(self, config):
        super().__init__(config)
        self.dropout = nn.Dropout(0.5)


class DroppingBlock(Block):
    mlp_class = Dropping


class WithDropping(KoGPT):
    block_class = DroppingBlock


class WithHashes(Transformer):
    def __init__(self, config, blocks, rotary):
        super().__init__(config, blocks, rotary)
        self.hashes = nn.Embedding(config.vocab_size, config.n_embd)

    def embed(self, input_ids, positions):
        return self.wte(input_ids) + self.hashes(input_ids)


class Narrow(Transformer):
    def __init__(self, config, blocks, rotary):
        super().__init__(config, blocks, rotary)
        self.wte, self.up = nn.Embedding(config.vocab_size, 8), nn.Linear(8, config.n_embd)

    def embed(self, input_ids, positions):
        return self.up(self.wte(input_ids))


@pytest.mark.parametrize(
    ("transformer_class", "told"),
    [
        (WithHashes, r"transformer\.hashes is read by ids too"),
        (Narrow, r"a soft prompt is 32 wide, transformer\.wte 8"),
    ],
)
def test_virtual_tokens_of_a_model_that_embeds_otherwise_are_refused(transformer_class, told):
    from kogpt.adapters import PromptConfig, attach_prompt

    model = made(type("Own", (KoGPT,), {"transformer_class": transformer_class}))
    with pytest.raises(ValueError, match=told):
        attach_prompt(model, PromptConfig(4))


class Convolved(MLP):
    def __init__(self, config):
        super().__init__(config)
        self.fc_in = nn.Conv1d(config.n_embd, config.inner_dim, 1)


class ConvolvedBlock(Block):
    mlp_class = Convolved


def test_an_update_of_a_layer_that_is_not_linear_is_refused():
    model = made(type("Own", (KoGPT,), {"block_class": ConvolvedBlock}))
    with pytest.raises(ValueError, match=r"h\.0\.mlp\.fc_in, which is no linear layer: Conv1d"):
        attach_lora(model, LoRAConfig(("fc_in",)))


def test_virtual_tokens_are_not_read_once_for_rows_that_drop_out_by_themselves():
    from kogpt.adapters import PromptConfig, attach_prompt

    model = made(WithDropping).train()
    attach_prompt(model, PromptConfig(4, "none"))
    x = torch.cat((torch.tensor([model.prefix_ids]).expand(3, -1), ids(1).expand(3, -1)), dim=1)
    first = hidden_states(model, x)[:, 0]
    assert not first[0].equal(first[1])


class Leaky(Attention):
    """A state that forgets: the last one is read from the cache before the next is appended."""

    def forward(self, x, rotate, cache, starts):
        B, T, C = x.shape
        state = x.new_zeros(B, 1, C)
        if cache is not None and cache.length:
            like = x.view(B, T, 1, C)
            state = cache.buffers(self.layer, like, like)[0][:, cache.length - 1]
        states = []
        for value in self.v_proj(x).split(1, dim=1):
            state = 0.5 * state + value
            states.append(state)
        seen = torch.cat(states, dim=1)
        if cache is not None:
            cache.append(self.layer, seen[:, :, None], seen[:, :, None])
        return self.out_proj(seen)


def test_virtual_tokens_are_not_read_once_by_a_layer_that_asks_the_cache_for_its_state():
    from kogpt.adapters import PromptConfig, attach_prompt

    block = type("Own", (Block,), {"attention_class": Leaky})
    model = made(type("With", (KoGPT,), {"block_class": block}))
    attach_prompt(model, PromptConfig(4, "none"))
    x = torch.cat((torch.tensor([model.prefix_ids]).expand(3, -1), ids(3)), dim=1)
    expected = model.transformer(x)
    torch.testing.assert_close(hidden_states(model, x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_virtual_tokens_are_not_read_once_where_a_class_may_draw_for_each_row(training):
    from kogpt.adapters import PromptConfig, attach_prompt

    class SomeRows(MLP):
        def forward(self, x):
            keep = torch.rand(len(x), 1, 1) < 0.5 if self.training else 1
            return super().forward(x) * keep

    model = made(with_mlp(SomeRows)).train(training)
    model.config = dataclasses.replace(CONFIG, attn_pdrop=0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    attach_prompt(model, PromptConfig(4, "none"))
    x = torch.cat((torch.tensor([model.prefix_ids]).expand(8, -1), ids(1).expand(8, -1)), dim=1)
    prefixes = hidden_states(model, x)[:, :4]
    assert (prefixes != prefixes[:1]).any() == training


def test_one_of_several_layers_with_a_common_weight_is_not_merged():
    model = made(OneMatrix)
    attach_lora(model, LoRAConfig(("fc_in", "q_proj")))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"mlp\.fc_in\.weight cannot be updated alone: .*is the same"
    ):
        merge(model)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_embeddings_in_lists_are_read_by_ids_too():
    from kogpt.adapters import PromptConfig, attach_prompt

    class WithTables(Transformer):
        def __init__(self, config, blocks, rotary):
            super().__init__(config, blocks, rotary)
            self.values = nn.ModuleList([nn.Embedding(config.vocab_size, config.n_embd)])

    model = made(type("Own", (KoGPT,), {"transformer_class": WithTables}))
    with pytest.raises(ValueError, match=r"transformer\.values\.0 is read by ids too"):
        attach_prompt(model, PromptConfig(4, "none"))


# --- the prepared network ---


@pytest.mark.parametrize("part", [KoGPT, Transformer, Block, Attention, MLP, RotaryEmbedding])
def test_what_takes_a_part_s_place_is_not_passed_over(part, tmp_path, monkeypatch, capsys):
    write_checkpoint(tmp_path / "a", CONFIG, made(KoGPT).state_dict())
    updated = made(KoGPT)
    attach_lora(updated, LoRAConfig(("fc_in",)))
    for name, parameter in updated.named_parameters():
        parameter.data.add_("lora_B" in name)
    write_adapter(tmp_path / "b", updated)
    assert isinstance(load_fast(tmp_path / "a"), FastKoGPT)
    plain = part.forward
    monkeypatch.setattr(part, "forward", lambda self, *given: plain(self, *given))
    changed = load_fast(tmp_path / "a", "bfloat16", adapters=[tmp_path / "b"])
    assert type(changed) is KoGPT and changed.dtype == torch.bfloat16
    wanted = load_model(tmp_path / "a", "bfloat16")
    assert not changed(ids()).equal(wanted(ids()))
    load_adapters(wanted, [tmp_path / "b"])
    assert changed(ids()).equal(wanted(ids()))
    told = f"kogpt: {part.__name__}.forward was changed: running the readable network\n"
    assert capsys.readouterr().err == told


def test_what_takes_a_class_s_place_is_not_passed_over(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "a", CONFIG, made(KoGPT).state_dict())
    monkeypatch.setattr(KoGPT, "block_class", TwiceBlock)
    assert type(load_fast(tmp_path / "a").transformer.h[0]) is TwiceBlock


def test_an_edited_network_is_not_passed_over(tmp_path, monkeypatch):
    """By the hashes of its files: who edits one sees to `kogpt/fast/`, then puts the new one."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, sha256 in SOURCES.items():
        text = (source.HERE / name).read_bytes()
        assert hashlib.sha256(text).hexdigest() == sha256, f"kogpt/fast is of another {name}"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text)
    monkeypatch.setattr(source, "HERE", folder)
    monkeypatch.setattr(source, "is_edited", is_edited.__wrapped__)
    assert change(KoGPT) is change(GPT2) is change(GPTNeoX) is None
    known = {"transformer.py", "rotary.py"}
    neighbours = {"variants/parts.py"}
    for name in SOURCES:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(b"")
        found = {each for each in (KoGPT, GPT2, GPTNeoX) if change(each) == str(folder / name)}
        (folder / name).write_bytes(whole)
        own = GPT2 if name == "variants/gpt2.py" else GPTNeoX
        wanted = {KoGPT, GPT2, GPTNeoX} if name in known else {GPT2, GPTNeoX}
        assert found == (wanted if name in known | neighbours else {own}), name


@pytest.mark.parametrize("model_class", source.PARTS, ids=lambda each: each.__name__)
def test_every_part_of_a_network_is_looked_at(model_class, monkeypatch):
    sizes = {"vocab_size": 9, "n_positions": 8, "n_embd": 128, "n_head": 2, "n_layer": 1}
    model, parts = model_class(model_class.config_class(**sizes)), source.PARTS[model_class]
    used = {each for module in model.modules() for each in type(module).__mro__}
    used |= {*type(model.transformer.rotary(torch.arange(3)[None])).__mro__}
    ours = {each for each in used if each.__module__.startswith("kogpt.model.")}
    assert {*parts} <= ours <= {*parts, *source.PARTS[KoGPT]}
    for part in parts:
        for name, value in vars(part).items():
            if name.startswith("__") or not callable(getattr(part, name)):
                continue
            with monkeypatch.context() as patch:
                # A function of this package too: another one's place is not its own.
                other = KoGPT.init_weights if value is not KoGPT.init_weights else KoGPT.logits
                patch.setattr(part, name, staticmethod(other))
                assert change(model_class) == f"{part.__name__}.{name}"
    assert change(model_class) is None


def test_a_class_that_is_not_known_is_another_network():
    assert change(type("Own", (GPTNeoX,), {})) == "Own"


def test_what_python_notes_in_a_class_is_no_change():
    copy.deepcopy(made(KoGPT))
    pickle.dumps(RotaryEmbedding(4, 8))
    assert change() is None


class Mistaken(MLP):
    def __init__(self, config):
        super().__init__(config, "one thing too many")


def test_another_mistake_of_a_class_is_told_as_it_is():
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        count_parameters(CONFIG, with_mlp(Mistaken))


def test_the_fingerprint_of_the_network_is_that_of_all_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "HERE", tmp_path)
    (tmp_path / "variants").mkdir()
    found = set()
    for name in ("a.py", "variants/b.py"):
        for text in ("1", "2"):
            (tmp_path / name).write_text(text)
            found.add(source.network_fingerprint.__wrapped__())
    assert len(found) == 4
