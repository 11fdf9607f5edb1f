"""The contenders of `benchmark_finetuning.py`: each a process that takes steps when asked.

    python scripts/finetuners.py NAME CASE

CASE is a `Case` as JSON. Every line on standard input is a number of steps; the answer to each is a
line of JSON with what they took. The first line that is written says that the contender is ready.

Ours is the production step, `Trainer.take_step`. A peer is the plain loop that its documentation
teaches, with the same optimizer, clipping and loss, on the same weights and rows.
"""

import json
import os
import sys
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from kogpt.benchmarking.bandwidth import synchronize
from kogpt.benchmarking.machine import peak_memory, reset_peak
from kogpt.box import BOX
from kogpt.checkpoint import load_model
from kogpt.checkpoint.convert import GROUP_SIZE
from kogpt.checkpoint.quantization import Quantization
from kogpt.checkpoint.rounding import round_rows
from kogpt.choices import FULL, QLORA
from kogpt.kernels import FrozenLinear, Weight
from kogpt.kernels.linear import pack_int4
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.tokenizer import load_tokenizer
from kogpt.training.config import FinetuningConfig
from kogpt.training.job import Files, Job
from kogpt.training.loop import Trainer
from kogpt.training.methods import attach_method
from kogpt.training.objectives import CausalExample, Completions, ExampleBatch, to_device
from kogpt.training.pages import use_huge_pages

OURS = "KoGPT"
RATE, BETAS, DECAY, CLIP = 2e-4, (0.9, 0.98), 0.01, 1.0


@dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        model: a checkpoint folder; or
        shape: a preset's name, with random weights.
        method: "full", "lora" or "qlora".
        batch: rows in a step, all of one length.
        sequence: tokens in a row.
        learnt: how many tokens of a row are targets, the last ones; None for all.
        recompute: activations, in the backward pass.
        precision: "float32" or "bfloat16".
        targets: of the updates.
        rank: of the updates.
        alpha: of the updates.
        dropout: of embeddings, attention weights and what blocks add.
        device: where.
        threads: of a CPU.
    """

    model: str | None
    shape: str | None
    method: str
    batch: int
    sequence: int
    learnt: int | None
    recompute: bool
    precision: str
    targets: tuple[str, ...]
    rank: int
    alpha: float
    dropout: float
    device: str
    threads: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, as `kogpt finetune` would have it."""
        narrow = self.precision == "bfloat16" and self.method != FULL
        return torch.bfloat16 if narrow else torch.float32

    @property
    def config(self) -> FinetuningConfig:
        """The same as settings of a run, with a learning rate that stays."""
        return FinetuningConfig(
            data=("random.jsonl",),
            out=Path("nowhere"),
            model=self.model or str(self.shape),
            method=self.method,
            steps=1 << 20,
            batch_size=self.batch,
            sequence_length=self.sequence,
            learning_rate=RATE,
            final_learning_rate=1.0,
            warmup_steps=0,
            weight_decay=DECAY,
            beta1=BETAS[0],
            beta2=BETAS[1],
            gradient_clip=CLIP,
            precision=self.precision,
            targets=self.targets,
            rank=self.rank,
            alpha=self.alpha,
            activation_checkpointing=self.recompute,
            device=self.device,
            curve=False,
            tensorboard=False,
        )

    @cached_property
    def objective(self) -> Completions:
        return Completions(load_tokenizer(BOX), (), self.sequence)

    def rows(self, step: int, vocab_size: int) -> ExampleBatch:
        """The batch of a step, random ids, as finetuning lays it out."""
        generator = torch.Generator().manual_seed(step)
        size = self.batch, self.sequence + 1
        ids = torch.randint(vocab_size, size, generator=generator).tolist()
        first = self.sequence + 1 - (self.learnt or self.sequence)
        batch = self.objective.collate([[CausalExample(tuple(row), first)] for row in ids])
        return to_device(batch, torch.device(self.device))


# --- the same numbers in every contender ---


def draw(name: str, shape: torch.Size, like: Tensor) -> Tensor:
    """What a tensor of this name begins as: a function of its name, its shape and the device."""
    if name.endswith((".bias", "lora_B")):
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    if len(shape) == 1:  # of a norm
        return torch.ones(shape, dtype=like.dtype, device=like.device)
    generator = torch.Generator(like.device).manual_seed(zlib.crc32(name.encode()))
    new = torch.empty(shape, dtype=torch.float32, device=like.device)
    return new.normal_(0.0, 0.02, generator=generator).to(like.dtype)


@torch.no_grad()
def fill(parameters: Mapping[str, nn.Parameter]) -> None:
    """Draws parameters, given by our names."""
    for name, parameter in parameters.items():
        parameter.copy_(draw(name, parameter.shape, parameter))


def set_dropout(model: nn.Module, p: float) -> None:
    """Sets every dropout of a network that has no updates yet, ours or that of transformers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        for name in ("attn_pdrop", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, p)


# --- contenders ---


class Contender(ABC):
    """A model with its optimizer."""

    def __init__(self, case: Case) -> None:
        self.case = case

    @abstractmethod
    def take_step(self) -> Tensor | float:
        """Takes a step; the mean loss before it."""


class Ours(Contender):
    def __init__(self, case: Case) -> None:
        super().__init__(case)
        use_huge_pages()  # as a run of training does
        quantized = case.method == QLORA
        if case.model:
            model = load_model(case.model, case.dtype, case.device, quantized=quantized)
        else:
            model = random_model(case)
            if quantized:
                quantize(model)
        set_dropout(model, case.dropout)
        attach_method(model, case.config)
        fill({name: p for name, p in model.named_parameters() if ".lora_" in name})
        self.trainer = Trainer(RandomRows(case, model.train()))

    def take_step(self) -> float:
        return self.trainer.take_step()[0]


class RandomRows(Job[FinetuningConfig, ExampleBatch]):
    """Finetuning on rows of random ids, which nothing is kept of."""

    def __init__(self, case: Case, model: KoGPT) -> None:
        self.case, self.config, self.model, self.data = case, case.config, model, "random"

    def num_steps(self) -> int:
        assert self.config.steps is not None, "a case says how many"
        return self.config.steps

    def batches(self, step: int, steps: int) -> list[ExampleBatch]:
        return [self.case.rows(step, self.model.config.vocab_size)]

    def loss(self, batch: ExampleBatch) -> Tensor:
        return self.case.objective.loss(self.model, batch)

    def describe(self) -> str:
        return "random ids"

    def validate(self) -> dict[str, float]:
        return {}

    def save(self, folder: Path, files: Files) -> None:
        raise NotImplementedError("nothing is kept")


def random_model(case: Case) -> KoGPT:
    """Our network with drawn weights."""
    with torch.device("meta"):
        model = KoGPT(KoGPTConfig.preset(str(case.shape))).to(case.dtype)
    model.to_empty(device=case.device)
    fill(dict(model.named_parameters()))
    return model


def quantize(model: KoGPT) -> None:
    """Rounds matrices as `kogpt convert --quantize int4` does, but where the model is."""
    quantization = Quantization.of("int4", GROUP_SIZE, zero_points=False)
    for name, layer in list(model.named_modules()):
        scheme = quantization.scheme(f"{name}.weight")
        if scheme is None or not isinstance(layer, nn.Linear):
            continue
        q, scale, _ = round_rows(layer.weight.detach().float(), scheme, model.dtype)
        weight = Weight(pack_int4(q) if scheme.bits == 4 else q, scale)
        bias = None if layer.bias is None else layer.bias.detach()
        model.set_submodule(name, FrozenLinear(weight, bias))


class Peer(Contender):
    """transformers, and peft for updates; in bfloat16 as its Trainer does: updates are float32."""

    narrow = False  # updates of the dtype of the weights, and no autocast

    def __init__(self, case: Case) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__(case)
        model = self.load()
        set_dropout(model, case.dropout)
        if case.method != FULL:
            names = {"target_modules": list(case.targets), "task_type": "CAUSAL_LM"}
            config = LoraConfig(r=case.rank, lora_alpha=case.alpha, lora_dropout=0.0, **names)
            model = get_peft_model(model, config, autocast_adapter_dtype=not self.narrow)
            fill(dict(our_updates(model)))
        if case.recompute:
            options = {"use_reentrant": False}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        self.model, self.step = model.train(), 0
        self.trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in self.trained if p.ndim >= 2], "weight_decay": DECAY},
            {"params": [p for p in self.trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)

    def load(self) -> nn.Module:
        """The network of transformers with the weights of the case."""
        from transformers import AutoModelForCausalLM

        case = self.case
        if case.model is None:
            model = random_peer(case)
        else:
            model = AutoModelForCausalLM.from_pretrained(case.model, dtype=case.dtype)
            model = model.to(case.device)
        if case.method == QLORA:
            to_nf4(model, case.dtype)
        return model

    def take_step(self) -> Tensor:
        case = self.case
        batch = case.rows(self.step, self.model.config.vocab_size)
        cast = case.precision == "bfloat16" and not self.narrow
        with torch.autocast(torch.device(case.device).type, torch.bfloat16, enabled=cast):
            # `shift_labels` are labels that lie at the tokens before them, as our targets do.
            loss = self.model(
                input_ids=batch.input_ids,
                labels=batch.targets,
                shift_labels=batch.targets,
                use_cache=False,
            ).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach()


class NarrowPeer(Peer):
    """The same with updates in bfloat16, moments too: less exact, but nothing is cast."""

    narrow = True


def random_peer(case: Case) -> nn.Module:
    """The network of transformers with drawn weights."""
    from transformers import GPTJConfig, GPTJForCausalLM

    config = GPTJConfig(**KoGPTConfig.preset(str(case.shape)).to_dict())
    with torch.device("meta"):
        model = GPTJForCausalLM(config).to(case.dtype)
    model.to_empty(device=case.device)
    # Its tables are derived, and blank now.
    rotary = type(model.transformer.rotary_emb)(config)
    model.transformer.rotary_emb = rotary.to(case.device)
    fill(dict(model.named_parameters()))
    return model


def our_updates(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Updates that peft made, by our names."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            layer = name.removeprefix("base_model.model.")
            yield layer.removesuffix(".default.weight"), parameter


def to_nf4(model: nn.Module, dtype: torch.dtype) -> None:
    """Rounds the matrices of the blocks to 4 bits, as the paper of QLoRA does."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear) or name == "lm_head":
            continue
        N, K = layer.weight.shape
        new = Linear4bit(K, N, layer.bias is not None, compute_dtype=dtype, quant_type="nf4")
        weight = layer.weight.detach()
        new.weight = Params4bit(weight, requires_grad=False, quant_type="nf4")
        new.bias = layer.bias
        model.set_submodule(name, new.to(weight.device))  # this rounds it
    model.is_loaded_in_4bit = True  # by which peft knows


CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    OURS: Ours,
    "transformers + peft": Peer,
    "transformers + peft, bfloat16 updates": NarrowPeer,
}


def contenders(method: str, precision: str) -> list[str]:
    """Who takes part."""
    names = list(CONTENDERS)
    return names if precision == "bfloat16" and method != FULL else names[:2]


# --- the process ---


def turn(contender: Contender, steps: int) -> dict[str, Any]:
    """Takes steps; seconds of the clock and of the processor, and the losses."""
    device = torch.device(contender.case.device)
    synchronize(device)
    start, cpu = time.perf_counter(), time.process_time()
    losses = [contender.take_step() for _ in range(steps)]
    synchronize(device)
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return {**seconds, "losses": list(map(float, losses))}


def serve(name: str, case: Case, answers: TextIO) -> None:
    """Takes turns until standard input ends."""
    torch.set_num_threads(case.threads)
    device = torch.device(case.device)
    contender = CONTENDERS[name](case)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    known = reset_peak(device)
    # What is there before the first step: on a GPU its memory is counted, on a CPU the growth.
    before = 0 if device.type == "cuda" else peak_memory(device) or 0
    print(json.dumps({"ready": name, "case": asdict(case)}), file=answers, flush=True)
    for line in sys.stdin:
        warmed = turn(contender, 1)  # brings caches back, and on a GPU memory
        told = turn(contender, int(line))
        peak = peak_memory(device) if known else None
        told["losses"] = warmed["losses"] + told["losses"]
        told["memory"] = None if peak is None else peak - before
        if device.type == "cuda":
            torch.cuda.empty_cache()  # it is the others' turn, and the memory is one
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries write what they like to standard output
    serve(sys.argv[1], Case(**{**given, "targets": tuple(given["targets"])}), answers)
