"""Trains variants of a shape on the same tokens, with several seeds, and draws their curves.

    python scripts/sweep.py data/nsmc/reviews.tsv.xz work \\
        --variant plain \\
        --variant "SwiGLU=tests/model/swaps.py:WithSwiGLU,n_inner=683" \\
        --variant "sequential=tests/model/swaps.py:WithSequentialResidual"

A variant is a name, and after it, where there is one, a class of one's own and fields of the config
that are others. Every run is `kogpt train` in a process of its own and reads the same tokens as the
other variants of its seed, in the same order, so variants are compared seed by seed: the table has
the mean of their differences from the first, with its standard error. What is in `work` already is
not run again, but refused where it was of other settings, and what was interrupted goes on.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kogpt.box import BOX
from kogpt.cli import exit_code
from kogpt.commands.common import option_of, refuse_below
from kogpt.errors import InputRefusedError, KoGPTError
from kogpt.pictures import families
from kogpt.textfiles import markdown_row
from kogpt.training.log import LOG_NAME, read_log
from kogpt.training.model import TOKEN_IDS
from kogpt.training.state import checkpoints, read_state

if TYPE_CHECKING:
    from kogpt.model import KoGPT

METRIC = "held_out_bits_per_byte"
Curve = dict[int, float]  # tokens read -> held-out bits per byte


@dataclass(frozen=True)
class Variant:
    """A variant as it was asked for.

    Attributes:
        name: in tables and pictures.
        architecture: FILE.py:CLASS; None for that of the shape.
        fields: of the config, in the place of the shape's.
    """

    name: str
    architecture: str | None
    fields: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Reads `NAME[=FILE.py:CLASS][,FIELD=VALUE...]`."""
        first, *others = text.split(",")
        name, _, architecture = first.partition("=")
        if not re.fullmatch(r"[^/|\0]+", name) or name.startswith((".", "_")):
            raise argparse.ArgumentTypeError(f"{text!r}: {name!r} is no name of a folder")
        pairs = (field.partition("=") for field in others)
        try:
            given = {key: json.loads(value) for key, _, value in pairs}
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: a field is no FIELD=NUMBER") from None
        return cls(name, architecture or None, given)


def main() -> None:
    args = parse_arguments()
    runs = [(variant, seed) for seed in args.seeds for variant in args.variants]
    for variant, seed in runs:
        refuse_other_settings(variant, seed, args)
    args.work.mkdir(parents=True, exist_ok=True)
    for variant, seed in [] if args.table else runs:
        run(variant, seed, args)
    found = {
        variant.name: {seed: read_curve(variant, seed, args) for seed in args.seeds}
        for variant in args.variants
    }
    sizes = {variant.name: parameters(variant, args) for variant in args.variants}
    lines = "\n".join(table(found, sizes))
    (args.work / "table.md").write_text(lines + "\n", encoding="utf-8")
    draw(found, args.work / "sweep.png", f"{args.shape}, {len(args.seeds)} seeds")
    print(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="texts, as for kogpt train")
    parser.add_argument("work", type=Path, help="folder for the runs")
    parser.add_argument(
        "--variant",
        dest="variants",
        action="append",
        type=Variant.parse,
        required=True,
        metavar="NAME[=FILE.py:CLASS][,FIELD=VALUE...]",
        help="the first is what others are held to",
    )
    parser.add_argument("--shape", default="nano", help="preset or config.json (default: nano)")
    parser.add_argument("--tokenizer", type=Path, default=BOX, help="folder")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tokens", type=float, default=524288, help="of each run")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--validations", type=int, default=8, help="in each run")
    parser.add_argument("--documents", type=int, default=500, help="held out, to validate by")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--table", action="store_true", help="of what is there already")
    args = parser.parse_args()
    refuse_below(args, tokens=1, batch_size=1, sequence_length=1, validations=1)
    names = [variant.name for variant in args.variants]
    if twice := [name for name in names if names.count(name) > 1]:
        parser.error(f"argument --variant: {twice[0]!r} is there twice")
    if len(set(args.seeds)) < len(args.seeds):
        parser.error("argument --seeds: one is there twice")
    return args


def run(variant: Variant, seed: int, args: argparse.Namespace) -> None:
    """Starts a run, or goes on with it; one that is done only sees that nothing else is asked."""
    settings = settings_of(seed, args)
    options = {
        "config": write_shape(variant, args),
        "tokenizer": args.tokenizer,
        "architecture": variant.architecture,
        **settings,
        "validate_every": max(1, settings["steps"] // args.validations),
        "save_every": settings["steps"],
        "device": args.device,
        "out": folder_of(args.work, variant, seed),
    }
    command = [sys.executable, "-m", "kogpt", "train", str(args.data), "--resume", "--no-curve"]
    for name, value in options.items():
        command += [] if value is None else [option_of(name), str(value)]
    if code := subprocess.run(command).returncode:
        raise KoGPTError(f"variant {variant.name}, seed {seed}: kogpt train ended with {code}")


def settings_of(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """What figures depend on beside the variant, by its names in `kogpt train`."""
    steps = math.ceil(args.tokens / (args.batch_size * args.sequence_length))
    return {
        "seed": seed,
        "steps": steps,
        "batch_size": args.batch_size,
        "sequence_length": args.sequence_length,
        "learning_rate": args.learning_rate,
        "warmup_steps": steps // 10,
        "validation_documents": args.documents,
    }


def refuse_other_settings(variant: Variant, seed: int, args: argparse.Namespace) -> None:
    """Refuses figures that cannot be compared, some of which `kogpt train` would let pass.

    Raises:
        InputRefusedError: a finished run, which has a checkpoint, was of another shape or other
            settings; or the variant cannot be.
    """
    from kogpt.model.variants import find_config

    folder, shape = folder_of(args.work, variant, seed), shape_of(variant, args)
    now = {**settings_of(seed, args), **shape, "architecture": variant.architecture}
    for checkpoint in checkpoints(folder):
        begun = find_config(str(checkpoint / "config.json"), own_class(variant)).to_dict()
        before = {**read_state(checkpoint).config, **begun}
        for name, value in now.items():
            if name not in TOKEN_IDS and before.get(name) != value:
                raise InputRefusedError(f"{folder}: {name} was {before.get(name)!r}, not {value!r}")


def folder_of(work: Path, variant: Variant, seed: int) -> Path:
    return work / f"{variant.name}-{seed}"


def shape_of(variant: Variant, args: argparse.Namespace) -> dict[str, Any]:
    """The config of a variant.

    Raises:
        InputRefusedError: the variant cannot be.
    """
    from kogpt.model.variants import find_config

    try:
        shape = find_config(args.shape, own_class(variant))
        unknown = variant.fields.keys() - {field.name for field in fields(shape)}
        if unknown:
            raise InputRefusedError(f"{type(shape).__name__} has no field {min(unknown)!r}")
        return type(shape).from_dict(shape.to_dict() | variant.fields).to_dict()
    except InputRefusedError as error:
        raise InputRefusedError(f"variant {variant.name}: {error}") from None


def write_shape(variant: Variant, args: argparse.Namespace) -> Path:
    """The config of a variant, as a file."""
    path = args.work / f"{variant.name}.json"
    path.write_text(json.dumps(shape_of(variant, args), indent=2), encoding="utf-8")
    return path


def parameters(variant: Variant, args: argparse.Namespace) -> int:
    """Count of a variant's parameters."""
    from kogpt.diagnostics.diff import find_model

    return find_model(write_shape(variant, args), own_class(variant)).parameters


def own_class(variant: Variant) -> "type[KoGPT] | None":
    from kogpt.architecture import load_architecture

    return load_architecture(variant.architecture)


def read_curve(variant: Variant, seed: int, args: argparse.Namespace) -> Curve:
    """Held-out figures of a run; empty where it has not come to its end yet."""
    folder = folder_of(args.work, variant, seed)
    if not checkpoints(folder):
        return {}
    return {e["tokens"]: e[METRIC] for e in read_log(folder / LOG_NAME) if METRIC in e}


def table(found: dict[str, dict[int, Curve]], sizes: dict[str, int]) -> Iterator[str]:
    """Markdown: last figure of each seed, mean and deviation, difference from the first variant."""
    yield "| variant | parameters | bits per byte | every seed | less than the first |"
    yield "| --- | ---: | ---: | --- | ---: |"
    first = next(iter(found.values()))
    for name, curves in found.items():
        ends = {seed: curve[max(curve)] for seed, curve in curves.items() if curve}
        if not ends:
            yield f"| {name} | {sizes[name]:,} | not yet run | | |"
            continue
        gains = [first[s][max(first[s])] - end for s, end in ends.items() if first[s]]
        cells = [
            name,
            f"{sizes[name]:,}",
            spread(list(ends.values())),
            " ".join(f"{end:.4f}" for end in ends.values()),
            "" if curves is first else spread(gains, error=True),
        ]
        yield markdown_row(cells)


def spread(values: Sequence[float], error: bool = False) -> str:
    """Mean with the standard deviation, or error, where there are several."""
    if len(values) < 2:
        return " ".join(f"{value:.4f}" for value in values)
    deviation = statistics.stdev(values) / (math.sqrt(len(values)) if error else 1)
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def draw(found: dict[str, dict[int, Curve]], path: Path, title: str) -> None:
    """Mean over seeds as a line, from the lowest to the highest as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for place, (name, curves) in enumerate(found.items()):
        curves = {seed: curve for seed, curve in curves.items() if curve}
        if not curves:
            continue
        common = sorted(set.intersection(*(set(curve) for curve in curves.values())))
        columns = [[curve[tokens] for curve in curves.values()] for tokens in common]
        millions = [tokens / 1e6 for tokens in common]
        color = f"C{place}"
        means = [statistics.mean(column) for column in columns]
        axes.plot(millions, means, "o-", color=color, markersize=3.5, label=name)
        axes.fill_between(
            millions, list(map(min, columns)), list(map(max, columns)), color=color, alpha=0.2, lw=0
        )
    axes.set(xlabel="tokens read, millions", ylabel="held-out bits per byte")
    fonts = families(title, *found)
    axes.set_title(title, family=fonts, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    for text in axes.legend(frameon=False, prop={"family": fonts}).get_texts():
        text.set_parse_math(False)
    figure.savefig(path, format="png")


if __name__ == "__main__":
    sys.exit(exit_code(main, Path(__file__).name))
