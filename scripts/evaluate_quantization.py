"""What int8 and int4 cost a model: held-out perplexity, logits, and each layer's output.

Everything is computed in float32, so what is measured is the rounding of the weights alone; the
column `prepared` is the change with the network prepared for speed, which may round inputs too. The
model is quantised as `kogpt convert` does it. Perplexity is per token over the held-out documents,
each scored alone, as in evaluate_nano.py; layers and logits are compared on the first of their
tokens, a linear layer given the float model's input, a block that of the blocks before it.

    python scripts/evaluate_quantization.py data/nsmc/reviews.tsv.xz
"""

import argparse
import json
import math
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from kogpt.box import BOX
from kogpt.checkpoint import ConversionOptions, convert, load_model, open_checkpoint
from kogpt.cli import exit_code
from kogpt.commands.common import check_file, refuse_below
from kogpt.fast import load_fast
from kogpt.model import KoGPT
from kogpt.model.transformer import Block
from kogpt.tokenizer import load_tokenizer
from kogpt.training.data import EncodedDocuments, encode_documents
from kogpt.training.documents import HOLD_OUT_EVERY, read_documents
from kogpt.training.loss import score_documents

ROWS, LENGTH = 8, 256  # of the tokens that layers are compared on

KINDS = {
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "int4, zero points": {"quantize": "int4", "zero_points": True},
}


@dataclass(frozen=True)
class Cost:
    """What a way of storing costs.

    Attributes:
        nbytes: of the weights.
        perplexity: per token.
        prepared: the same of the prepared network.
        largest_logit_change: in absolute terms.
        errors: module -> norm of the change of its output, over the norm of the output.
    """

    nbytes: int
    perplexity: float
    prepared: float
    largest_logit_change: float
    errors: dict[str, float]


def main() -> None:
    args = parse_arguments()
    rows = args.documents and args.documents * HOLD_OUT_EVERY
    documents = islice(read_documents([args.data], args.column), rows)
    held_out = encode_documents(documents, load_tokenizer(args.model))[1]
    print(f"{len(held_out):,} held-out documents, {len(held_out.ids):,} tokens")
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}\n")
    print("| weights | bytes | perplexity | change | prepared | largest logit change |")
    print("|---|---:|---:|---:|---:|---:|")
    costs = {"float": measure(args.model, args.model, held_out)}
    print_row("float", costs)
    for kind, options in KINDS.items():
        if args.group_size and options["quantize"] == "int4":
            options = {**options, "group_size": args.group_size}
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "quantised"
            convert(args.model, folder, ConversionOptions(**options, quiet=True))
            costs[kind] = measure(folder, args.model, held_out)
        print_row(kind, costs)
    for kind in KINDS:
        print_layers(kind, costs[kind].errors)
    if args.json:
        values = {kind: asdict(cost) for kind, cost in costs.items()}
        args.json.write_text(json.dumps(values, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help=".txt or .tsv, or either with .xz")
    parser.add_argument("--column", default="document")
    parser.add_argument("--model", type=Path, default=BOX, help="checkpoint folder, of floats")
    parser.add_argument("--group-size", type=int, help="of int4 (default: 128)")
    parser.add_argument("--documents", type=int, help="only so many of those held out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args()
    refuse_below(args, documents=1, group_size=1)
    if args.json:
        check_file("json", args.json)
    return args


@torch.no_grad()
def measure(folder: Path, exact: Path, documents: EncodedDocuments) -> Cost:
    """Compares the checkpoint in a folder with the exact one."""
    model, reference = load_model(folder, "float32"), load_model(exact, "float32")
    length = min(LENGTH, model.config.n_positions, len(documents.ids))
    count = len(documents.ids) // length * length
    ids = torch.from_numpy(documents.ids[:count].astype("int64")).view(-1, length)[:ROWS]
    with open_checkpoint(folder) as reader:
        return Cost(
            nbytes=reader.nbytes,
            perplexity=perplexity(model, documents),
            prepared=perplexity(load_fast(folder, "float32"), documents),
            largest_logit_change=(model(ids) - reference(ids)).abs().max().item(),
            errors=layer_errors(model, reference, ids),
        )


def perplexity(model: KoGPT, documents: EncodedDocuments) -> float:
    return math.exp(score_documents(model, documents).loss)


def layer_errors(model: KoGPT, reference: KoGPT, ids: Tensor) -> dict[str, float]:
    """Relative changes of the outputs of all linear layers and blocks."""
    inputs, outputs = {}, {}
    changed: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = arguments[0], output

        return hook

    def keep_changed(name: str) -> Callable:
        return lambda module, arguments, output: changed.update({name: output})

    for name, module in reference.named_modules():
        if isinstance(module, nn.Linear | Block):
            module.register_forward_hook(keep(name))
    for name, module in model.named_modules():
        if isinstance(module, Block):
            module.register_forward_hook(keep_changed(name))
    reference(ids)
    model(ids)
    for name in inputs.keys() - changed.keys():
        changed[name] = model.get_submodule(name)(inputs[name])
    return {
        name: ((changed[name] - output).norm() / output.norm()).item()
        for name, output in outputs.items()
    }


def print_row(kind: str, costs: dict[str, Cost]) -> None:
    cost, exact = costs[kind], costs["float"].perplexity
    changes = cost.perplexity / exact - 1, cost.prepared / exact - 1
    print(
        f"| {kind} | {cost.nbytes:,} | {cost.perplexity:.3f} | {changes[0]:+.2%} |"
        f" {changes[1]:+.2%} | {cost.largest_logit_change:.3f} |",
        flush=True,
    )


def print_layers(kind: str, errors: dict[str, float]) -> None:
    parts = ("q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out")
    print(f"\nRelative error of outputs, {kind}:\n")
    print(f"| layer | {' | '.join(parts)} | all blocks so far |")
    print("|---|" + "---:|" * (len(parts) + 1))
    layer = 0
    while f"transformer.h.{layer}" in errors:
        block = f"transformer.h.{layer}"
        rooms = ["attn"] * 4 + ["mlp"] * 2
        row = [errors[f"{block}.{r}.{p}"] for r, p in zip(rooms, parts, strict=True)]
        print(f"| {layer} | " + " | ".join(f"{e:.2%}" for e in [*row, errors[block]]) + " |")
        layer += 1
    print(f"\nlm_head: {errors['lm_head']:.2%}")


if __name__ == "__main__":
    sys.exit(exit_code(main, Path(__file__).name))
