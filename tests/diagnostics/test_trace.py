"""Faults planted in a network are found where they are; rounding is found nowhere."""

import dataclasses
import json
import math
import shutil
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kogpt.checkpoint import load_model, write_checkpoint
from kogpt.cli import main
from kogpt.diagnostics.capture import watching
from kogpt.diagnostics.trace import trace
from kogpt.diagnostics.trace_errors import distance, ulp
from kogpt.diagnostics.trace_plot import draw
from kogpt.diagnostics.trace_sites import BLOCK, OURS, Place, Site
from kogpt.errors import InputRefusedError
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.model.rotary import RotaryEmbedding, Rotation
from tests.cli.test_commands import kogpt, refusal
from tests.model.test_variants import reference
from tests.tokenizer.conftest import write_byte_level

SHAPE = {"vocab_size": 300, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 2}
CONFIG = KoGPTConfig(**SHAPE, rotary_dim=8)
INPUT_IDS = torch.arange(7, 19)[None] * 11  # (1, 12)


def random_model(config: KoGPTConfig = CONFIG, std: float = 0.2) -> KoGPT:
    """Weights large enough for attention to prefer some tokens, biases and norms random too."""
    model = KoGPT(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(float("ln_" in name and "weight" in name), std, generator=generator)
    return model


def transformers_of(model: KoGPT) -> nn.Module:
    """The same network by transformers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTJConfig(**model.config.to_dict(), attn_implementation="eager")
    other = transformers.GPTJForCausalLM(config).eval()
    other.load_state_dict(model.state_dict())
    return other


class HalfPairs(Rotation):
    """Dims i and i + R/2 turn together, as in GPT-NeoX: the wrong pairing for GPT-J."""

    def __call__(self, x):
        width = self.cos.size(-1)
        first, second, rest = x.split((width, width, x.size(-1) - 2 * width), dim=-1)
        turned = (first * self.cos - second * self.sin, second * self.cos + first * self.sin)
        return torch.cat((*(part.to(x.dtype) for part in turned), rest), dim=-1)


class HalfPairsEverywhere(RotaryEmbedding):
    def forward(self, positions):
        return HalfPairs(*super().forward(positions))


class AllBut(nn.ModuleList):
    """Layers of which one is never called."""

    def __iter__(self):
        return (block for i, block in enumerate(super().__iter__()) if i != 1)


def pair_wrongly(model):
    model.transformer.rotary = HalfPairsEverywhere(CONFIG.rotary_width, CONFIG.n_positions)


def pair_one_layer_wrongly(model):
    def wrong(attn, args):
        return args[0], HalfPairs(*args[1]), *args[2:]

    model.transformer.h[2].attn.register_forward_pre_hook(wrong)


def swap_projections(model):
    attn = model.transformer.h[1].attn
    attn.q_proj, attn.k_proj = attn.k_proj, attn.q_proj


def skip_layer(model):
    model.transformer.h[1].register_forward_hook(lambda block, args, output: args[0])


def never_call_layer(model):
    model.transformer.h = AllBut(model.transformer.h)


def lose_layer(model):
    del model.transformer.h[1]


def lose_last_layer(model):
    del model.transformer.h[2]


def gelu_without_tanh(model):
    def exact(fc_out, args):
        return (F.gelu(model.seen),)

    mlp = model.transformer.h[2].mlp
    mlp.fc_in.register_forward_hook(lambda fc_in, args, out: setattr(model, "seen", out))
    mlp.fc_out.register_forward_pre_hook(exact)


def scale_scores_wrongly(model):
    attn = model.transformer.h[1].attn
    inner = attn.attend
    attn.attend = lambda q, k, v, starts: inner(q / 2, k, v, starts)


def forget_bias(model):
    model.lm_head.bias.data.zero_()


def norm_with_another_epsilon(model):
    model.transformer.h[0].ln_1.eps = 1e-4


def weigh_mlp_twice(model):
    model.transformer.h[0].mlp.register_forward_hook(lambda mlp, args, output: 2 * output)


LARGE_FAULTS = [
    (swap_projections, "transformer.h.1.attn.q_proj"),
    (skip_layer, "transformer.h.1"),
    (never_call_layer, "transformer.h.1"),
    (lose_layer, "transformer.h.1.ln_1"),
    (lose_last_layer, "transformer.h.2"),
    (weigh_mlp_twice, "transformer.h.0"),
    (forget_bias, "lm_head"),
    (pair_wrongly, "transformer.h.0.attn mixed values"),
    (pair_one_layer_wrongly, "transformer.h.2.attn mixed values"),
    (scale_scores_wrongly, "transformer.h.1.attn mixed values"),
]
SMALL_FAULTS = [
    (gelu_without_tanh, "transformer.h.2.mlp activation"),
    (norm_with_another_epsilon, "transformer.h.0.ln_1"),
]


def named(cases):
    return [pytest.param(*case, id=case[0].__name__) for case in cases]


@pytest.mark.parametrize(("plant", "where"), named(LARGE_FAULTS + SMALL_FAULTS))
def test_a_fault_is_found_against_transformers_at_its_layer_and_tensor(plant, where):
    model = random_model()
    other = transformers_of(model)
    plant(model)
    assert str(trace(model, other, INPUT_IDS).parting.site) == where


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("plant", "where"), named(LARGE_FAULTS))
def test_a_fault_is_found_under_the_rounding_of_16_bits(plant, where, dtype):
    model = random_model()
    other = transformers_of(model)
    plant(model.to(dtype))
    assert str(trace(model, other, INPUT_IDS).parting.site) == where


@pytest.mark.parametrize("plant", [pair_wrongly, pair_one_layer_wrongly])
def test_between_two_of_ours_a_wrong_pairing_is_found_where_queries_are_rotated(plant):
    model, other = random_model(), random_model()
    plant(model)
    report = trace(model, other, INPUT_IDS)
    layer = 0 if plant is pair_wrongly else 2
    assert report.parting.site == (f"transformer.h.{layer}.attn", "rotated queries")
    faulty = [site.short for site in report.sites if site.own.relative > report.tolerance]
    assert set(faulty) == {"attn rotated queries", "attn rotated keys"}


def test_only_the_first_fault_is_the_verdict_and_later_ones_are_in_the_table():
    model, other = random_model(), random_model()
    for plant in (forget_bias, skip_layer, swap_projections):
        plant(model)
    report = trace(model, other, INPUT_IDS)
    faulty = [str(site.site) for site in report.sites if not site.own.relative <= report.tolerance]
    inner = [f"transformer.h.1.attn.{name}" for name in ("q_proj", "k_proj")]
    assert faulty == [*inner, "transformer.h.1", "lm_head"]
    assert str(report.parting.site) == inner[0] and report.parting.layer == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_ours_and_transformers_agree_in_every_dtype(dtype):
    model = random_model()
    other = transformers_of(model).to(dtype)
    report = trace(model.to(dtype), other, INPUT_IDS)
    assert report.parting is None
    assert len(report.sites) == 4 + 3 * 10
    assert {site.tensor for site in report.alone} == {"rotated queries", "rotated keys"}


def test_rounding_that_grows_beyond_the_tolerance_is_no_fault():
    # A network in which errors grow, so that a threshold on what is propagated would find a fault.
    deep = random_model(KoGPTConfig(**{**SHAPE, "n_layer": 12}, rotary_dim=8), std=0.6)
    report = trace(random_model(deep.config, std=0.6).bfloat16(), deep, INPUT_IDS)
    assert max(site.propagated.relative for site in report.sites) > 3 * report.tolerance
    assert report.parting is None
    assert max(site.own.relative for site in report.sites) > report.tolerance / 30


def test_propagated_errors_are_those_of_plain_runs():
    model, other = random_model(), random_model()
    swap_projections(model)
    with torch.no_grad():
        a, b = model(INPUT_IDS).double(), other(INPUT_IDS).double()
    found = trace(model, other, INPUT_IDS).sites[-1]
    assert (found.module, found.tensor, found.layer) == ("logits", "output", None)
    assert found.propagated.relative == pytest.approx(((a - b).norm() / b.norm()).item())
    assert found.propagated.absolute == (a - b).abs().max().item()
    assert found.own.relative == 0.0


def test_a_tolerance_that_is_given_decides():
    model, other = random_model(), random_model()
    model.transformer.h[2].mlp.fc_in.bias.data *= 1.001
    error = trace(model, other, INPUT_IDS).parting
    assert str(error.site) == "transformer.h.2.mlp.fc_in"
    assert trace(model, other, INPUT_IDS, tolerance=0.01).parting is None


def test_integers_of_the_other_side_have_no_say_in_the_tolerance():
    model, other = random_model(), random_model()
    expected = trace(model, other, INPUT_IDS).tolerance
    packed = nn.Parameter(torch.zeros(3, dtype=torch.int32), requires_grad=False)
    other.register_parameter("weight_packed", packed)
    assert trace(model, other, INPUT_IDS).tolerance == expected


def test_a_value_that_is_not_finite_is_a_fault():
    model, other = random_model(), random_model()
    model.transformer.h[1].mlp.fc_out.bias.data[3] = math.nan
    report = trace(model, other, INPUT_IDS)
    assert str(report.parting.site) == "transformer.h.1.mlp.fc_out"
    assert "NaN" not in json.dumps(report.to_dict())


class FusedAttention(nn.Module):
    """Attention as GPT-NeoX has it: each head's query, key and value out of one product."""

    def __init__(self, attn):
        super().__init__()
        self.attn, self.head_dim = attn, attn.head_dim
        weights = [p.weight.unflatten(0, (-1, 16)) for p in (attn.q_proj, attn.k_proj, attn.v_proj)]
        self.query_key_value = nn.Linear(32, 96, bias=False)
        self.query_key_value.weight.data = torch.stack(weights, 1).flatten(0, 2)
        self.out_proj = attn.out_proj

    def forward(self, x, rotate, cache, starts):
        q, k, v = self.query_key_value(x).unflatten(-1, (2, 3, 16)).unbind(-2)
        return self.out_proj(self.attn.attend(rotate(q), rotate(k), v, starts).flatten(2))


def test_a_table_takes_our_tensors_out_of_fused_ones():
    def part(index):
        def take(x, config):
            return x.unflatten(-1, (config.n_head, 3, -1)).select(-2, index).flatten(-2)

        return Place(f"{BLOCK}.attn.query_key_value", take=take)

    fused = {Site(f"{BLOCK}.attn.{name}_proj"): part(i) for i, name in enumerate("qkv")}
    model, other = random_model(), random_model()
    for block in other.transformer.h:
        block.attn = FusedAttention(block.attn)
    report = trace(model, other, INPUT_IDS, places={**OURS, **fused})
    assert report.parting is None and len(report.sites) == 4 + 3 * 10
    swap_projections(model)
    report = trace(model, other, INPUT_IDS, places={**OURS, **fused})
    assert str(report.parting.site) == "transformer.h.1.attn.q_proj"


def test_what_is_changed_in_place_after_it_was_seen_is_no_fault():
    models = random_model(), random_model()
    for model in models:
        model.transformer.h[1].attn.resid_dropout.register_forward_hook(
            lambda m, args, x: x.mul_(2)
        )
    report = trace(*models, INPUT_IDS)
    assert report.parting is None and max(site.own.absolute for site in report.sites) == 0.0


class Pair(nn.Module):
    """Returns a tuple, as blocks and attention of some versions of transformers do."""

    def forward(self, x):
        return x, "more"


def test_the_first_of_a_tuple_is_seen_and_replaced():
    pair, site, seen = Pair(), Site("pair"), []

    def see(site, tensor):
        seen.append((site, tensor))
        return -tensor

    x = torch.ones(2)
    with watching(nn.ModuleDict({"pair": pair}), [(site, Place("pair"))], see):
        replaced, rest = pair(x)
    assert seen == [(site, x)] and torch.equal(replaced, -x) and rest == "more"
    assert pair(x)[0] is x


def left_on(model: nn.Module) -> list[object]:
    """Whatever hangs on the modules of a network."""
    found: list[object] = []
    for module in model.modules():
        found += [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        found += [value for name, value in vars(module).items() if name == "attend"]
    return found


@pytest.mark.parametrize("side", [0, 1])
def test_what_one_side_computes_more_than_once_is_refused(side):
    def again(block, args):
        block.ln_1(args[0])

    sides = random_model(), random_model()
    sides[side].transformer.h[1].register_forward_pre_hook(again)
    with pytest.raises(InputRefusedError, match="h.1.ln_1 is computed more than once in a pass"):
        trace(*sides, INPUT_IDS)


@pytest.mark.parametrize("side", [0, 1])
def test_the_side_that_computes_a_skipped_layer_is_named_and_its_tensors_are_alone(side):
    sides = random_model(), random_model()
    never_call_layer(sides[side])
    report = trace(*sides, INPUT_IDS)
    who = ("the other", "the model")[side]
    assert report.parting.module == "transformer.h.1"
    assert report.parting.why == f"only {who} computes this layer"
    assert {site.module for site in report.alone} >= {"transformer.h.1", "transformer.h.1.ln_1"}


def test_nothing_is_left_on_either_network_and_both_are_as_before():
    model, other = random_model().train(), random_model()
    scale_scores_wrongly(other)
    own = vars(other.transformer.h[1].attn)["attend"]
    with torch.no_grad():
        before = model.eval()(INPUT_IDS), other(INPUT_IDS)
    model.train()
    trace(model, other, INPUT_IDS)
    assert model.training and not other.training
    assert not left_on(model)
    assert left_on(other) == [own]
    with torch.no_grad():
        assert all(map(torch.equal, (model.eval()(INPUT_IDS), other(INPUT_IDS)), before))


@pytest.mark.parametrize("broken", [0, 1])
def test_nothing_is_left_after_an_error_either(broken):
    models = random_model(), random_model()

    def fail(*args):
        raise ZeroDivisionError

    models[broken].transformer.h[1].mlp.fc_out.forward = fail
    with pytest.raises(ZeroDivisionError):
        trace(*models, INPUT_IDS)
    assert not left_on(models[0]) and not left_on(models[1])


def test_networks_that_cannot_be_compared_are_refused():
    wider = random_model(KoGPTConfig(**{**SHAPE, "n_embd": 48}, rotary_dim=8))
    with pytest.raises(InputRefusedError, match="wte is 1 x 12 x 32, and 1 x 12 x 48 on the other"):
        trace(random_model(), wider, INPUT_IDS)
    with pytest.raises(InputRefusedError, match="model_type is None; it can be one of gptj"):
        trace(random_model(), nn.Identity(), INPUT_IDS)
    compiled = torch.compile(random_model(), backend="eager")
    for pair in ((random_model(), compiled), (compiled, random_model())):
        with pytest.raises(InputRefusedError, match="give what was compiled"):
            trace(*pair, INPUT_IDS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_unit_in_the_last_place_is_the_step_to_the_next_number(dtype):
    info = torch.finfo(dtype)
    values = [1.0, 1.5, 2 - info.eps, 2.0, 3.7, 1e-3, 1e3, info.smallest_normal, 0.0]
    numbers = torch.tensor(values, dtype=dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    steps = (numbers.view(bits) + 1).view(dtype).double() - numbers.double()
    assert torch.equal(ulp(numbers.double(), dtype), steps)
    assert torch.equal(ulp(-numbers.double(), dtype), steps)


def test_errors_are_counted_in_units_of_the_coarser_dtype():
    reference = torch.tensor([[1.0, 3.0, -200.0]])
    found = distance((reference + torch.tensor([0, 0, 2])).bfloat16(), reference)
    assert found.ulp == 2.0 and found.absolute == 2.0  # bfloat16 steps by 1 from 128 to 256
    assert found.relative == pytest.approx(2 / (1 + 9 + 200**2) ** 0.5, rel=1e-12)
    # 1 is small in its row, whose root mean square lies between 64 and 128: steps of 0.5.
    small = distance((reference + torch.tensor([0.5, 0, 0])).bfloat16(), reference)
    assert small.ulp == 1.0


def test_errors_count_in_units_of_what_was_computed_in():
    """Though both sides widen them, as logits."""
    reference = torch.tensor([1.0, 1.0])
    value = reference + torch.tensor([torch.finfo(torch.bfloat16).eps, 0])
    assert distance(value, reference).ulp == 2.0**16
    assert distance(value, reference, torch.bfloat16, torch.float32).ulp == 1.0


def test_equal_tensors_have_no_error_and_nan_is_none():
    same = torch.tensor([[0.0, math.inf, -1.0]])
    assert set(vars(distance(same, same)).values()) == {0.0}
    assert math.isnan(distance(torch.tensor([math.nan]), torch.tensor([1.0])).relative)
    assert distance(torch.tensor([1.0]), torch.tensor([0.0])).relative == math.inf


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model, and the same with two projections of layer 1 swapped."""
    root = tmp_path_factory.mktemp("trace")
    config = KoGPTConfig(**{**SHAPE, "vocab_size": 512}, rotary_dim=8)
    state = random_model(config).state_dict()
    q, k = (f"transformer.h.1.attn.{name}_proj.weight" for name in "qk")
    for name, weights in (("sound", state), ("faulty", {**state, q: state[k], k: state[q]})):
        write_checkpoint(root / name, config, weights)
        write_byte_level(root / name)
    return root


def test_the_command_names_the_fault_on_its_first_line_and_draws_it(folders, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "trace.png"
    where = ("--model", f"{folders}/faulty", "--against", f"{folders}/sound")
    lines = kogpt("trace", "이 영화는", *where, "--plot", str(picture)).stdout.splitlines()
    assert lines[0].startswith(
        "faulty (float32) and sound (float32) part at transformer.h.1.attn.q_proj, output: own "
    )
    stages = [line.split()[0] for line in lines[2:8]]
    assert stages == ["wte", "0", "1", "2", "ln_f", "lm_head"]
    (marked,) = [line for line in lines if line.endswith("<- here")]
    assert marked.startswith("attn.q_proj ")
    assert max(map(len, lines[1:])) <= 100
    assert picture.read_bytes().startswith(b"\x89PNG")


def overflow(model):
    model.transformer.h[1].mlp.fc_out.bias.data[3] = math.inf


def change_nothing(model):
    pass


@pytest.mark.parametrize("plant", [change_nothing, never_call_layer, overflow])
def test_a_picture_is_drawn_of_equal_networks_missing_layers_and_infinities(plant, tmp_path):
    pytest.importorskip("matplotlib")
    model, other = random_model(), random_model()
    plant(model)
    report = trace(model, other, INPUT_IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(report, tmp_path / "trace.png")
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ((), ["sound (float32)", "sound (float64)"]),
        (("--dtype", "bfloat16"), ["sound (bfloat16)", "sound (float32)"]),
        (("--against", "transformers"), ["sound (float32)", "transformers (float32)"]),
        (
            ("--against", "transformers", "--dtype", "bfloat16", "--against-dtype", "float32"),
            ["sound (bfloat16)", "transformers (float32)"],
        ),
    ],
)
def test_the_command_compares_a_folder_with_a_finer_dtype_or_with_transformers(
    folders, asked, names
):
    done = kogpt("trace", "이 영화는", "--model", f"{folders}/sound", "--json", *asked)
    report = json.loads(done.stdout)
    assert report["names"] == names and report["parting"] is None and done.stderr == ""
    assert report["sites"][-1]["module"] == "logits"
    errors = [site["own"]["relative"] for site in report["sites"]]
    assert 0 < max(errors) < report["tolerance"]


def test_folders_of_one_name_are_told_apart(folders, tmp_path):
    other = shutil.copytree(folders / "sound", tmp_path / "sound")
    where = ("--model", f"{folders}/sound", "--against", str(other))
    names = json.loads(kogpt("trace", "이 영화는", *where, "--json").stdout)["names"]
    assert names == [f"{folders}/sound (float32)", f"{other} (float32)"]


def test_the_command_refuses_what_has_no_sense(folders, monkeypatch):
    sound = ("trace", "이 영화는", "--model", f"{folders}/sound")
    same = (*sound, "--against", f"{folders}/sound", "--against-dtype", "float32")
    assert "nothing differs: both are sound in float32" in refusal(*same, code=2)
    assert "--tolerance: must be above 0" in refusal(*sound, "--tolerance", "0", code=2)
    assert "must end in .png" in refusal(*sound, "--plot", "x.txt", code=2)
    assert "the prompt is empty" in refusal("trace", "", *sound[2:], code=3)
    assert "/nonexistent" in refusal(*sound, "--against", "/nonexistent", code=3)
    short = KoGPTConfig(**{**SHAPE, "vocab_size": 512, "n_positions": 2}, rotary_dim=8)
    write_checkpoint(folders / "short", short, random_model(short).state_dict())
    told = refusal(*sound, "--against", f"{folders}/short", code=3)
    assert "tokens, the context of the model holds 2" in told
    monkeypatch.setitem(sys.modules, "transformers", None)
    line = refusal(*sound, "--against", "transformers", code=1)
    assert "--against transformers needs it: pip install transformers" in line


def swap_keys_and_queries(block):
    attn = block.attn
    attn.q_proj, attn.k_proj = attn.k_proj, attn.q_proj


def norm_wrongly(block):
    block.ln_2.eps = 0.3


NEIGHBOUR_FAULTS = {
    "none": (lambda block: None, None),
    "swapped": (swap_keys_and_queries, "transformer.h.1.attn.q_proj"),
    "norm": (norm_wrongly, "transformer.h.1.ln_2"),
}


@pytest.mark.parametrize("fault", NEIGHBOUR_FAULTS)
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_the_neighbours_are_traced_by_the_tables_that_read_their_checkpoints(name, fault, tmp_path):
    pytest.importorskip("transformers")
    theirs = reference(name)
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    plant, module = NEIGHBOUR_FAULTS[fault]
    plant(model.transformer.h[1])
    found = trace(model, theirs, INPUT_IDS % 97)
    assert (found.parting and found.parting.module) == module
    outputs = {site.module for site in found.sites if site.tensor == "output"}
    expected = {"transformer.wte", "transformer.h.2", "transformer.h.2.attn.v_proj", "lm_head"}
    expected |= {"transformer.h.0.ln_2", "transformer.h.1.mlp.fc_out", "transformer.ln_f"}
    assert outputs >= expected | ({"transformer.wpe"} if name == "gpt2" else set())


def test_a_model_in_training_is_traced_without_its_dropout():
    shape = dataclasses.replace(CONFIG, attn_pdrop=0.5, embd_pdrop=0.5, resid_pdrop=0.5)
    one, other = random_model(shape).train(), random_model(shape).train()
    assert trace(one, other, INPUT_IDS).parting is None
    assert one.training and other.training


class Capped(KoGPT):
    def logits(self, hidden):
        return 5 * torch.tanh(super().logits(hidden) / 5)


@pytest.mark.parametrize("side", [lambda model: model, transformers_of])
def test_what_becomes_of_the_heads_output_is_compared_too(side):
    other = random_model()
    model = Capped(other.config).eval()
    model.load_state_dict(other.state_dict())
    parting = trace(model, side(other), INPUT_IDS).parting
    assert (parting.module, parting.layer) == ("logits", None)


def test_a_class_for_transformers_is_wrong_usage(capsys):
    asked = ["--against", "transformers", "--against-architecture", "a.py:A"]
    assert main(["trace", "영화", *asked]) == 2
    assert "--against-architecture: of no use with --against" in capsys.readouterr().err
