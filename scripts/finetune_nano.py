"""Finetunes `nano` by every method on NSMC and KorSTS, with several seeds, and writes the tables.

    python scripts/finetune_nano.py data work [--only lora full] [--seeds 0 1 2]

Each run is `kogpt finetune` in a process of its own; the command is in its `results.json`. What is
in `work` already is not run again, but refused where it was of other settings, and what was
interrupted goes on, so the script can be stopped and started at will; `--table` runs nothing. NSMC
has a baseline beside it: a logistic regression on TF-IDF weights of 1 to 4 characters
(scikit-learn), on the same rows, its regularisation chosen by the same held-out rows.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from kogpt.box import BOX
from kogpt.checkpoint import ConversionOptions, convert
from kogpt.cli import exit_code
from kogpt.errors import InputRefusedError, KoGPTError
from kogpt.evaluation import load_task
from kogpt.evaluation.metrics import METRICS
from kogpt.textfiles import markdown_row
from kogpt.training import FinetuningConfig
from kogpt.training.examples import read_task

ALL_LAYERS = "--targets q_proj k_proj v_proj out_proj fc_in fc_out --rank 16 --alpha 32"
VALIDATION = 2000  # rows of NSMC
NSMC = f"--data nsmc --batch-size 64 --validation-rows {VALIDATION} --validate-every 500"
KORSTS = "--data korsts --batch-size 64 --validate-every 50"

# Name of a run: what it is told besides model, seed and folders.
RUNS = {
    "full": f"{NSMC} --method full --learning-rate 5e-4 --epochs 2",
    "lora": f"{NSMC} --method lora {ALL_LAYERS} --learning-rate 1e-3 --epochs 3"
    " --keep-weights last",
    "qlora": f"{NSMC} --method qlora {ALL_LAYERS} --learning-rate 1e-3 --epochs 3"
    " --keep-weights last",
    "p-tuning": f"{NSMC} --method p-tuning --virtual-tokens 20 --learning-rate 2e-3 --epochs 1",
    "prompt-tuning": f"{NSMC} --method prompt-tuning --virtual-tokens 20 --learning-rate 3e-2"
    " --epochs 1",
    "korsts": f"{KORSTS} --objective regression --method full --learning-rate 5e-4 --epochs 5",
}
TITLES = {
    "full": "full finetuning",
    "lora": "LoRA, rank 16, all layers",
    "qlora": "QLoRA, the same beside int4",
    "p-tuning": "p-tuning, 20 tokens, LSTM",
    "prompt-tuning": "prompt tuning, 20 tokens",
    "korsts": "full finetuning, regression",
}
NOT_YET = "not yet run"
STRENGTHS = (1.0, 3.0, 10.0, 30.0)  # of the baseline, inverse of regularisation

Json = dict[str, Any]


def main() -> None:
    args = parse_arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.table:
        for seed in args.seeds:
            for name in args.only:
                run(name, seed, args)
        if "full" in args.only:
            baseline(args)
    for task in ("nsmc", "korsts"):
        print("\n".join(table(task, args.work)), end="\n\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the tasks' data")
    parser.add_argument("work", type=Path, help="folder for the runs")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="of what is there already")
    return parser.parse_args()


def run(name: str, seed: int, args: argparse.Namespace) -> None:
    """Starts a run, or goes on with it."""
    folder = args.work / f"{name}-{seed}"
    if (folder / "results.json").exists():
        read_results(name, folder / "results.json")
        return
    model = int4(args.work) if name == "qlora" else BOX
    command = [sys.executable, "-m", "kogpt", "finetune", "--model", str(model)]
    command += ["--data-dir", str(args.data), "--output", str(folder), "--seed", str(seed)]
    command += ["--save-every", "500", "--resume", *shlex.split(RUNS[name])]
    if code := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise KoGPTError(f"{folder.name}: kogpt finetune ended with {code}")


def read_results(name: str, path: Path) -> Json:
    """What a run found, if it was of the present settings."""
    found: Json = json.loads(path.read_text(encoding="utf-8"))
    if shlex.join(shlex.split(RUNS[name])) not in found["command"]:
        raise InputRefusedError(f"{path}: of other settings: {found['command']}")
    return found


def int4(work: Path) -> Path:
    """`nano` in 4 bits."""
    folder = work / "nano-int4"
    if not folder.exists():
        convert(BOX, folder, ConversionOptions(quantize="int4"))
    return folder


def baseline(args: argparse.Namespace) -> None:
    """The same rows by characters alone."""
    path = args.work / "baseline.json"
    if path.exists():
        return
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    settings = {"data_dir": args.data, "validation_rows": VALIDATION}
    config = FinetuningConfig(data=("nsmc",), out=args.work, model="", method="full", **settings)
    splits = read_task(load_task("nsmc"), config, attrgetter("text"))
    parts = splits.training, splits.validation, splits.test
    texts = [[row.fields["document"] for row in part] for part in parts]
    labels = [[row.label for row in part] for part in parts]
    weigh = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True, min_df=3)
    training, validation, test = weigh.fit_transform(texts[0]), *map(weigh.transform, texts[1:])
    found = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, solver="liblinear").fit(training, labels[0])
        found.append((model.score(validation, labels[1]), strength, model.score(test, labels[2])))
    held_out, strength, accuracy = max(found)
    result = {"C": strength, "validation": 100 * held_out, "accuracy": 100 * accuracy}
    path.write_text(json.dumps({**result, "features": training.shape[1]}), encoding="utf-8")


def table(task_name: str, work: Path) -> Iterator[str]:
    """Markdown: measured rows, then those that were published."""
    task = load_task(task_name)
    metric = task.metrics[0]
    names = METRICS[metric], "every seed", "first seed, 95 %"
    yield f"| model | method | trained | {' | '.join(names)} | origin |"
    yield "| --- | --- | ---: | ---: | --- | --- | --- |"
    for name in RUNS:
        results = [
            read_results(name, path) for path in sorted(work.glob(f"{name}-[0-9]*/results.json"))
        ]
        if f"--data {task_name} " in RUNS[name]:
            cells = figures(results, metric) if results else ["", NOT_YET, "", ""]
            yield markdown_row(["**nano**", TITLES[name], *cells, "measured" if results else ""])
    if task_name == "nsmc" and (work / "baseline.json").exists():
        found = json.loads((work / "baseline.json").read_text(encoding="utf-8"))
        method = f"logistic regression of 1-4 characters, TF-IDF, C {found['C']:g}"
        cells = [f"{found['features']:,}", f"{found['accuracy']:.2f}", "", ""]
        yield markdown_row(["", method, *cells, "measured"])
    for part in task.finetuned:
        for model, value in part.values.items():
            yield markdown_row([model, part.source, "", f"{value:g}", "", "", part.mark])


def figures(results: Sequence[Json], metric: str) -> list[str]:
    """Parameters, mean and deviation over seeds, each seed, interval of the first."""
    values = [result["test"][metric]["value"] for result in results]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    low, high = results[0]["test"][metric]["interval"]
    return [
        f"{results[0]['trained_parameters']:,}",
        f"{statistics.mean(values):.2f}{spread}",
        " ".join(f"{value:.2f}" for value in values),
        f"{low:.1f}-{high:.1f}",
    ]


if __name__ == "__main__":
    sys.exit(exit_code(main, Path(__file__).name))
