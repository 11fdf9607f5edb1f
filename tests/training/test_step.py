"""One optimizer step, looked at closely."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from kogpt.adapters import LoRAConfig, PromptConfig, attach_lora, attach_prompt
from kogpt.errors import KoGPTError
from kogpt.model import KoGPT
from kogpt.parallel import Parallel
from kogpt.training import activation_checkpointing, loop, train
from kogpt.training.activation_checkpointing import checkpoint_activations
from kogpt.training.data import encode_documents
from kogpt.training.documents import read_documents
from kogpt.training.log import Silent
from kogpt.training.loop import Trainer
from kogpt.training.loss import next_token_loss
from kogpt.training.optimizer import make_optimizer, trained
from kogpt.training.pretraining import Pretraining
from kogpt.training.schedule import learning_rate
from tests.training.conftest import TINY


@pytest.fixture
def make_trainer(settings, tokenizer):
    def make(shape=TINY, model_class=KoGPT, **changes):
        config = settings(**changes)
        model = model_class(shape)
        model.init_weights(torch.Generator().manual_seed(0))
        data = encode_documents(read_documents(config.data, config.column), tokenizer)
        return Trainer(Pretraining(config, model.train(), tokenizer, *data))

    return make


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.job.model.named_parameters()}


def test_accumulation_equals_the_large_batch(make_trainer):
    whole, parts, uneven = (make_trainer(micro_batch_size=size) for size in (4, 1, 3))
    results = [trainer.take_step() for trainer in (whole, parts, uneven)]
    for loss, norm in results[1:]:
        assert (loss, norm) == pytest.approx(results[0], rel=1e-5)
    for trainer in (parts, uneven):
        for name, expected in weights(whole).items():
            # Adam's first step is the sign of the gradient: where that is rounding, so is this.
            close = torch.isclose(weights(trainer)[name], expected, rtol=0, atol=1e-6)
            assert close.float().mean() > 0.999, name


def test_checkpointed_activations_give_equal_gradients_with_dropout():
    shape = dataclasses.replace(TINY, attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1)
    plain, frugal = KoGPT(shape), KoGPT(shape)
    frugal.load_state_dict(plain.state_dict())
    checkpoint_activations(frugal)
    ids = torch.randint(0, TINY.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))
    for model in (plain, frugal):
        torch.manual_seed(0)
        next_token_loss(model.train(), ids[:, :-1], ids[:, 1:]).backward()
    expected = dict(plain.named_parameters())
    for name, parameter in frugal.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad), name


def test_checkpointed_activations_are_fewer():
    def bytes_kept(model):
        kept = 0

        def count(tensor):
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        ids = torch.zeros(1, 32, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.transformer(ids)
        return kept

    shape = dataclasses.replace(TINY, n_layer=8)
    plain, frugal = KoGPT(shape), KoGPT(shape)
    checkpoint_activations(frugal)
    assert bytes_kept(frugal) < bytes_kept(plain) / 4


def test_every_block_is_computed_again_for_its_gradient():
    model, met = KoGPT(dataclasses.replace(TINY, n_layer=3)), []
    for place, block in enumerate(model.transformer.h):
        block.mlp.register_forward_pre_hook(lambda *_, place=place: met.append(place))
    checkpoint_activations(model)
    ids = torch.zeros(1, 9, dtype=torch.long)
    next_token_loss(model, ids[:, :-1], ids[:, 1:]).backward()
    assert met == [0, 1, 2, 2, 1, 0]


@pytest.mark.parametrize(("device", "times"), [("cpu", 1), ("meta", 0)])
def test_what_blocks_forget_on_a_cpu_goes_back_to_the_system(device, times, monkeypatch):
    given_back: list[bool] = []
    monkeypatch.setattr(
        activation_checkpointing, "give_memory_back", lambda: given_back.append(True)
    )
    checkpoint_activations(KoGPT(TINY).to(device))
    assert len(given_back) == times


class Balanced(KoGPT):
    """Names a matrix that shall not decay, and adds the size of another to the loss."""

    def no_weight_decay(self):
        return {"transformer.h.0.attn.q_proj.weight"}

    def auxiliary_loss(self):
        return self.transformer.h[0].attn.v_proj.weight.square().sum()


def test_a_class_names_what_does_not_decay(make_trainer):
    trainer = make_trainer(model_class=Balanced, weight_decay=0.1)
    names = {p: name for name, p in trainer.job.model.named_parameters()}
    decayed, kept = (
        {names[p] for p in group["params"]} for group in trainer.optimizer.param_groups
    )
    assert Balanced.no_weight_decay(None) < kept and len(decayed | kept) == len(names)
    assert all(("weight" in name and "ln_" not in name) for name in decayed)
    wrong = type("Wrong", (KoGPT,), {"no_weight_decay": lambda self: {"q_proj"}})
    with pytest.raises(ValueError, match="no_weight_decay names 'q_proj', which is no parameter"):
        make_trainer(model_class=wrong)


@pytest.mark.parametrize("adapt", ["lora", "prompt"])
def test_names_of_what_does_not_decay_are_those_without_adapters(settings, adapt):
    class Named(KoGPT):
        def no_weight_decay(self):
            return {
                "transformer.wte.weight",
                "transformer.h.0.attn.q_proj.weight",
                "lm_head.weight",
            }

    model = Named(TINY)
    if adapt == "lora":
        attach_lora(model, LoRAConfig(("q_proj",)))
    else:
        attach_prompt(model, PromptConfig(3, "none"))
    learnt = list(trained(model).values())
    decayed, _ = make_optimizer(model, settings()).param_groups
    assert {id(p) for p in decayed["params"]} == {id(p) for p in learnt if p.ndim >= 2}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    decayed, _ = make_optimizer(model, settings()).param_groups
    names = {name for name, p in model.named_parameters() if any(p is q for q in decayed["params"])}
    assert not [name for name in names if "wte.base" in name or "0.attn.q_proj.base" in name]


def test_a_class_adds_one_number(make_trainer):
    wrong = {"auxiliary_loss": lambda self: torch.zeros(2)}
    with pytest.raises(ValueError, match="auxiliary_loss gives 2 numbers, it must be one"):
        make_trainer(model_class=type("Wrong", (KoGPT,), wrong)).take_step()


@pytest.mark.parametrize("micro_batch_size", [4, 1, 3])
def test_a_class_adds_to_the_mean_loss(make_trainer, micro_batch_size):
    plain = make_trainer(micro_batch_size=micro_batch_size, gradient_clip=1e9)
    added = make_trainer(model_class=Balanced, micro_batch_size=micro_batch_size, gradient_clip=1e9)
    gradients = {}

    def keep(trainer):
        model = trainer.job.model
        return lambda *_: gradients.update(
            {id(trainer): {name: p.grad.clone() for name, p in model.named_parameters()}}
        )

    for trainer in (plain, added):
        trainer.optimizer.register_step_pre_hook(keep(trainer))
    weight = plain.job.model.transformer.h[0].attn.v_proj.weight.detach().clone()
    (loss, _), (more, _) = plain.take_step(), added.take_step()
    assert more == pytest.approx(loss + weight.square().sum().item(), rel=1e-5)
    for name, wanted in gradients[id(plain)].items():
        if name == "transformer.h.0.attn.v_proj.weight":
            wanted = wanted + 2 * weight
        torch.testing.assert_close(gradients[id(added)][name], wanted, rtol=1e-4, atol=1e-6)


def test_only_matrices_decay(make_trainer):
    trainer = make_trainer(weight_decay=0.1, learning_rate=1e-2, warmup_steps=0)
    before = weights(trainer)
    for parameter in trainer.job.model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    for name, after in weights(trainer).items():
        factor = 1 - 1e-2 * 0.1 if before[name].ndim == 2 else 1.0
        assert torch.allclose(after, before[name] * factor), name


def test_gradients_are_clipped_to_the_norm(make_trainer):
    trainer = make_trainer(gradient_clip=0.01)
    seen = []

    def note(optimizer, args, kwargs):
        seen.append(torch.nn.utils.get_total_norm([p.grad for p in trainer.job.model.parameters()]))

    trainer.optimizer.register_step_pre_hook(note)
    _, norm = trainer.take_step()
    assert norm > 0.01
    assert seen[0].item() == pytest.approx(0.01, rel=1e-3)


def test_short_sequences_see_the_same_tokens_in_pieces(make_trainer):
    trainer = make_trainer(short_length=8, short_part=0.5, steps=4)
    shapes = []
    for step in range(4):
        (batch,) = trainer.job.batches(step, trainer.steps)
        rows = trainer.job.sequences.batch(step, 4)
        shapes.append(tuple(batch.inputs.shape))
        assert batch.inputs.flatten().tolist() == rows[:, :-1].flatten().tolist()
        assert batch.targets.flatten().tolist() == rows[:, 1:].flatten().tolist()
    assert shapes == [(16, 8), (16, 8), (4, 32), (4, 32)]


@pytest.mark.parametrize("spoiled", ["transformer.wte.weight", "lm_head.bias"])
def test_a_loss_that_is_no_number_stops_the_run_before_it_reaches_the_weights(
    make_trainer, spoiled
):
    trainer = make_trainer(learning_rate=0.5)
    parameter = dict(trainer.job.model.named_parameters())[spoiled]
    with torch.no_grad():
        parameter.view(-1)[:] = float("nan")
    before = weights(trainer)
    with pytest.raises(KoGPTError, match=r"step 1: the loss is nan.*lower the learning rate 0.5"):
        trainer.take_step()
    for name, after in weights(trainer).items():
        assert torch.equal(after, before[name]) or name == spoiled
    assert trainer.step == 0


def test_bfloat16_stays_near_float32_and_keeps_float32_weights(make_trainer):
    exact, rounded = make_trainer(), make_trainer(precision="bfloat16")
    assert rounded.take_step()[0] == pytest.approx(exact.take_step()[0], rel=1e-3)
    assert all(p.dtype == torch.float32 for p in rounded.job.model.parameters())


def test_a_tiny_model_learns_a_few_sentences_by_heart(make_trainer):
    trainer = make_trainer(steps=80, learning_rate=2e-2, warmup_steps=10, batch_size=8)
    losses = [trainer.take_step()[0] for _ in range(80)]
    assert losses[0] > 5.5
    assert losses[-1] < 0.8  # which of five sentences comes next, and its number, is chance


def test_every_step_drops_otherwise_and_the_same_again(make_trainer):
    found = []
    for seed in (0, 0, 1):
        trainer = make_trainer(seed=seed)
        seeds = [trainer.take_step() and torch.initial_seed() for _ in range(3)]
        assert len(set(seeds)) == 3
        found.append(seeds)
    assert found[0] == found[1] and not set(found[0]) & set(found[2])


def test_a_gradient_that_is_no_number_stops_the_run_before_it_reaches_the_weights(
    make_trainer, monkeypatch
):
    trainer = make_trainer()
    before = weights(trainer)
    monkeypatch.setattr(type(trainer.parallel), "clip", lambda *_: math.inf)
    with pytest.raises(KoGPTError, match="step 1: the loss is .*, the norm of its gradient inf"):
        trainer.take_step()
    assert all(part.equal(before[name]) for name, part in weights(trainer).items())


def test_a_step_is_taken_at_its_own_learning_rate(make_trainer):
    trainer = make_trainer()
    for step in range(3):
        trainer.take_step()
        expected = learning_rate(step, trainer.steps, trainer.config)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_the_speed_is_that_of_the_steps_since_it_was_told_last(make_trainer, monkeypatch):
    speeds: list[float] = []

    class Listening(Silent):
        def trained(self, step, loss, tokens_per_second):
            speeds.append(tokens_per_second)

    trainer = make_trainer(steps=3, log_every=1)
    for name in ("_validate", "_save"):
        monkeypatch.setattr(trainer, name, lambda *_: None)
    times = iter([0, 1, 1, 3, 3, 6])  # steps of one second, of two and of three
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=times.__next__))
    trainer.run(Listening())
    assert speeds == pytest.approx([128, 64, 128 / 3])
    assert not trainer.job.model.training


def test_figures_that_are_no_numbers_end_the_run(settings, monkeypatch):
    monkeypatch.setattr(Pretraining, "validate", lambda _: {"held_out_loss": math.nan})
    with pytest.raises(KoGPTError, match="step 3: held_out_loss is nan; lower the learning rate"):
        train(settings(steps=6, validate_every=3))


def test_the_rows_of_a_grid_drop_otherwise(make_trainer):
    trainer, seeds = make_trainer(), set()
    for rank in range(3):
        trainer.parallel = Parallel()
        trainer.parallel.data_rank = rank
        trainer.step = 0
        trainer.take_step()
        seeds.add(torch.initial_seed())
    assert len(seeds) == 3


def test_the_disk_has_to_hold_weights_moments_and_master_weights(make_trainer, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(loop, "require_disk", lambda _, needed: asked.append(needed))
    trainer = make_trainer()
    settings = {**vars(trainer.config), "folder": None}
    for change in ({}, {"optimizer": "adamw-8bit"}, {"weights": "bfloat16-master"}):
        trainer.config = SimpleNamespace(**{**settings, **change})
        trainer.require_room()
    sizes = [needed / TINY.num_parameters for needed in asked]
    assert sizes == [4 + 8, 4 + 2, 4 + 8 + 4]


@pytest.mark.parametrize(
    ("change", "there", "on_the_cpu"),
    [
        ({}, 4 + 8, 0),
        ({"offload": True}, 4, 8),
        ({"weights": "bfloat16-master"}, 4 + 8 + 4, 0),
        ({"optimizer": "adamw-8bit"}, 4 + 2, 0),
    ],
)
def test_the_memory_has_to_hold_gradients_and_moments(
    make_trainer, monkeypatch, change, there, on_the_cpu
):
    """The meta device stands for a GPU."""
    asked: dict[str, float] = {}
    monkeypatch.setattr(loop, "require_disk", lambda *_: None)
    monkeypatch.setattr(
        loop,
        "require_memory",
        lambda device, size, _: asked.update({device.type: size / TINY.num_parameters}),
    )
    trainer = make_trainer()
    trainer.config = SimpleNamespace(**{**vars(trainer.config), "folder": None, **change})
    trainer.job.model.to("meta")
    trainer.require_room()
    assert asked == {"meta": there} | ({"cpu": on_the_cpu} if on_the_cpu else {})


def test_moments_that_are_there_take_no_more_memory(make_trainer, monkeypatch):
    asked: list[float] = []
    monkeypatch.setattr(
        loop, "require_memory", lambda _, size, what: asked.append(size / TINY.num_parameters)
    )
    trainer = make_trainer()
    trainer.take_step()
    trainer.require_room()  # as after a resume
    assert asked == [4]


def test_a_model_drops_out_while_it_trains_whatever_was_done_with_it_before(
    make_trainer, monkeypatch
):
    trainer, seen = make_trainer(steps=2), []
    take = trainer.take_step
    monkeypatch.setattr(
        trainer, "take_step", lambda: seen.append(trainer.job.model.training) or take()
    )
    monkeypatch.setattr(trainer, "_save", lambda: None)
    trainer.job.model.eval()
    trainer.run(Silent())
    assert seen == [True, True]
