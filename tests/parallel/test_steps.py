"""Steps of several processes are the steps of one: losses, gradient norms and weights."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kogpt.adapters import LoRAConfig, PromptConfig, attach_head, attach_lora, attach_prompt
from kogpt.adapters.config import TARGETS
from kogpt.checkpoint import load_model
from kogpt.evaluation.likelihood import Query, log_likelihoods
from kogpt.model import KoGPT
from kogpt.model.variants import GPT2, GPTNeoX
from kogpt.parallel import Parallel, sharding
from kogpt.parallel.loading import load_parallel, new_parallel
from kogpt.parallel.parts import held, whole
from kogpt.parallel.sharding import as_forward, clip, shard
from kogpt.parallel.tensor import tensor_parallel
from kogpt.training.activation_checkpointing import checkpoint_activations
from kogpt.training.loss import next_token_loss
from kogpt.training.optimizer import trained
from kogpt.training.shared_prefix import hidden_states
from tests.parallel.launch import run
from tests.parallel.tiny import CONFIG, GPT2_CONFIG, NEOX_CONFIG, some_ids, write_tiny
from tests.scale import some

STEPS, LIMIT = 3, 0.1
GRIDS = [(4, 2), (2, 1), (2, 2)]


LORA = LoRAConfig(TARGETS, rank=3, alpha=24.0)


def attach(model):
    """Updates of all layers, and a head that nothing asks."""
    attach_lora(model, LORA, torch.Generator().manual_seed(5))
    attach_head(model, 3, torch.Generator().manual_seed(6))


def cutter(parallel, recompute=False, lora=False, **how):
    """Cuts a model in every way that the processes allow."""

    def cut(model):
        if lora:
            attach(model)
        tensor_parallel(model, parallel)
        if recompute:
            checkpoint_activations(model)
        shard(model, parallel, **how)

    return cut


def loss_of(model, rows):
    """Summed over the targets."""
    return next_token_loss(model, rows[:, :-1], rows[:, 1:])


def train(model, loss, clip, turns):
    """Losses and norms of some steps of five micro-batches of one row."""
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2, fused=True)
    rows = some_ids(5).split(1)
    figures = []
    for _ in range(STEPS):
        total = torch.zeros(())
        for row, counts in turns(rows):
            part = loss(row) * counts / (5 * 11)
            part.backward()
            total += part.detach()
        figures.append([total, clip(model.parameters())])
        optimizer.step()
        optimizer.zero_grad()
    return figures, optimizer


def difference(model, expected):
    wanted = dict(expected.named_parameters())
    return max(
        (whole(p.detach()) - wanted[name].detach()).abs().max().item()
        for name, p in model.named_parameters()
    )


def steps(parallel, folder, how):
    """Differences of figures and weights from those of one process."""
    expected = load_model(folder)
    if how.get("lora"):
        attach(expected)
    wanted, _ = train(
        expected,
        lambda rows: loss_of(expected, rows),
        lambda parameters: torch.nn.utils.clip_grad_norm_(parameters, LIMIT).item(),
        lambda rows: [(row, True) for row in rows],
    )
    model = load_parallel(folder, parallel, cut=cutter(parallel, **how))
    table = model.transformer.rotary.table
    loss = as_forward(model, lambda rows: loss_of(model, rows))
    begun = sum(held(p).numel() for p in model.parameters())
    figures, optimizer = train(
        model, loss, lambda parameters: clip(parameters, LIMIT, parallel), parallel.turns
    )
    moments = sum(held(state["exp_avg"]).numel() for state in optimizer.state.values())
    pairs = list(zip(figures, wanted, strict=True))
    losses = [(parallel.sum(a) - b).abs().item() for (a, _), (b, _) in pairs]
    norms = [abs(a - b) / b for (_, a), (_, b) in pairs]
    return {
        "losses": max(losses),
        "norms": max(norms),
        "clipped": wanted[0][1] > LIMIT,
        "weights": difference(model, expected),
        "norm": [norm for _, norm in figures],
        "held": [begun, moments],
        "rotary": torch.equal(table, expected.transformer.rotary.table),
    }


@pytest.mark.parametrize(("processes", "tensor"), GRIDS)
def test_losses_norms_and_weights_are_those_of_one_process(tmp_path, processes, tensor):
    how = {"recompute": processes == 4, "offload": processes == 4}
    results = run(processes, steps, str(write_tiny(tmp_path / "model")), how, tensor=tensor)
    for found in results:
        assert found["losses"] < 1e-5
        assert found["norms"] < 1e-5
        assert found["clipped"]
        # Adam divides by the root of small squares: rounding of a gradient near 0 moves a weight
        # by up to the rate, 1e-2, times its share of that gradient.
        assert found["weights"] < 1e-4
        assert found["norm"] == results[0]["norm"]  # to the bit
        assert max(found["held"]) < 1.1 * CONFIG.num_parameters / processes
        assert found["rotary"]


def steps_of_each(parallel, folders):
    return [steps(parallel, folder, {}) for folder in folders]


def test_the_neighbours_take_the_same_steps_in_shares(tmp_path):
    """One of them with a head that is the embedding, whose gradient has both uses in it."""
    configs = {"gpt2": GPT2_CONFIG, "gpt_neox": NEOX_CONFIG}
    folders = [str(write_tiny(tmp_path / name, config)) for name, config in configs.items()]
    for found in sum(run(2, steps_of_each, folders), []):
        assert found["losses"] < 1e-5 and found["norms"] < 1e-5
        assert found["weights"] < 1e-4  # as above


@pytest.mark.parametrize(("processes", "tensor"), some(GRIDS, 1))
def test_updates_beside_frozen_weights_are_those_of_one_process(tmp_path, processes, tensor):
    how = {"lora": True, "recompute": tensor == 1}
    results = run(processes, steps, str(write_tiny(tmp_path / "model")), how, tensor=tensor)
    for found in results:
        assert max(found["losses"], found["norms"]) < 1e-5
        assert found["clipped"]
        assert found["weights"] < 1e-4  # as above
        assert found["norm"] == results[0]["norm"]


def narrow(parallel, folder):
    """Gradients of gathered weights in bfloat16, beside those of autocast."""
    expected = load_model(folder)
    model = load_parallel(folder, parallel, cut=cutter(parallel, precision="bfloat16"))
    rows = some_ids(4)
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(expected, rows).backward()
        loss = as_forward(model, lambda rows: loss_of(model, rows))(parallel.share(rows))
    loss.backward()
    wanted = dict(expected.named_parameters())
    return [
        [p.grad.dtype == torch.float32, ((whole(p.grad) - q.grad).norm() / q.grad.norm()).item()]
        for p, q in ((p, wanted[name]) for name, p in model.named_parameters())
    ]


def test_bfloat16_gathers_weights_as_autocast_rounds_them(tmp_path):
    for found in run(2, narrow, str(write_tiny(tmp_path / "model"))):
        assert all(is_float32 for is_float32, _ in found)
        # Norms' weights are rounded as well, and sums are taken in another order: 2^-8 a rounding.
        assert max(difference for _, difference in found) < 0.03


def between(parallel, folder):
    """A pass without gradients between two with them, as validation has."""
    expected = load_model(folder)
    model = load_parallel(folder, parallel, cut=cutter(parallel))
    rows = some_ids(4)
    queries = [Query(tuple(row[:6].tolist()), ((1, 2), (3,))) for row in rows]
    judge = as_forward(model, lambda: log_likelihoods(model, queries))
    wanted = log_likelihoods(expected, queries)
    before = [judge() for _ in range(2)]
    loss_of(expected, rows).backward()
    as_forward(model, lambda: loss_of(model, parallel.share(rows)))().backward()
    after = judge()
    gradient = (whole(model.lm_head.weight.grad) - expected.lm_head.weight.grad).abs().max()
    values = [[one.value for one in several] for several in (*before[0], *after)]
    return [values, [[one.value for one in several] for several in wanted * 2], gradient.item()]


def test_a_sharded_model_is_judged_between_steps(tmp_path):
    for found, wanted, gradient in run(2, between, str(write_tiny(tmp_path / "model"))):
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
        assert gradient < 1e-4  # of sums of 44 tokens' gradients, up to 20


def prompts(parallel, folder):
    """Gradients of a soft prompt from micro-batches of other sizes on each process."""

    def prompted():
        model = load_model(folder)
        attach_prompt(model, PromptConfig(3), torch.Generator().manual_seed(7))
        return model

    def loss_of_rows(model, rows):
        prefix = torch.tensor([model.prefix_ids]).expand(len(rows), -1)
        return hidden_states(model, torch.cat((prefix, rows), dim=1)).square().sum()

    expected, model, rows = prompted(), prompted(), some_ids(3)
    cutter(parallel)(model)
    loss_of_rows(expected, rows).backward()
    mine = rows[:1] if parallel.first else rows[1:]
    as_forward(model, lambda: loss_of_rows(model, mine))().backward()
    clip(model.parameters(), 1e9, parallel)
    return [
        ((whole(p.grad) - q.grad).norm() / q.grad.norm()).item()
        for p, q in zip(trained(model).values(), trained(expected).values(), strict=True)
    ]


def test_processes_with_soft_prompts_may_have_other_numbers_of_rows(tmp_path):
    for differences in run(2, prompts, str(write_tiny(tmp_path / "model"))):
        assert differences and max(differences) < 1e-5


def begin_anew(parallel, precision):
    from kogpt.model import KoGPT

    expected = KoGPT(CONFIG)
    expected.init_weights(torch.Generator().manual_seed(11))
    generator = torch.Generator().manual_seed(11)
    model = new_parallel(CONFIG, parallel, generator, cut=cutter(parallel, precision=precision))
    rows = some_ids(2)
    loss = as_forward(model, lambda: loss_of(model, rows))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        with torch.inference_mode():  # as where it is measured before it learns
            loss()
        loss().backward()
    return difference(model, expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_new_model_has_the_weights_that_one_process_draws(precision):
    assert run(4, begin_anew, precision, tensor=2) == [0.0] * 4


@pytest.mark.parametrize("limit", [1.0, 0.1])
def test_gradients_are_scaled_down_and_never_up(limit):
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([0.2, 0.15])
    assert sharding.clip([parameter], limit, Parallel()) == pytest.approx(0.25)
    assert parameter.grad.norm().item() == pytest.approx(min(limit, 0.25), rel=1e-4)


def test_a_soft_prompt_and_a_head_beside_it_stay_whole_on_every_process(monkeypatch):
    """And nothing else, though all of another model is trained."""
    told = {}
    monkeypatch.setattr(sharding, "fully_shard", lambda module, **how: told.update({module: how}))
    grid = SimpleNamespace(data_size=2, mesh={"data": None}, device=torch.device("cpu"))
    plain, prompted = KoGPT(CONFIG), KoGPT(CONFIG)
    attach_prompt(prompted, PromptConfig(3, encoder="lstm"))
    attach_head(prompted, 2)
    for model in (plain, prompted):
        sharding.shard(model, grid)
    assert told[plain]["ignored_params"] == set()
    assert told[prompted]["ignored_params"] == set(trained(prompted).values()) != set()


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize(
    ("kind", "config"), [(KoGPT, CONFIG), (GPT2, GPT2_CONFIG), (GPTNeoX, NEOX_CONFIG)]
)
def test_what_shards_are_gathered_and_added_up_in(monkeypatch, kind, config, offload):
    model = kind(config)
    told = {}
    monkeypatch.setattr(sharding, "fully_shard", lambda module, **how: told.update({module: how}))
    grid = SimpleNamespace(data_size=2, mesh={"data": None}, device=torch.device("cpu"))
    sharding.shard(model, grid, precision="bfloat16", offload=offload)
    blocks = list(model.transformer.h)
    norms = [part for block in blocks for part in block.modules() if type(part) is nn.LayerNorm]
    assert told.keys() == {*blocks, *norms, model}
    for module, how in told.items():
        policy = how["mp_policy"]
        narrow = (torch.bfloat16, torch.float32) if module in blocks else (None, None)
        assert (policy.param_dtype, policy.reduce_dtype) == narrow
        assert not policy.cast_forward_inputs
        assert isinstance(how["offload_policy"], sharding.CPUOffloadPolicy) is offload
