"""`kogpt classify`: what the head of a classifier says of a text, or of many."""

import argparse
from pathlib import Path

from kogpt.adapters.head import head_of, load_head
from kogpt.box import BOX
from kogpt.commands.common import load, memory_errors, print_json, read_text
from kogpt.errors import InputRefusedError, UsageError
from kogpt.evaluation.classifying import Prediction, classify
from kogpt.fast import FastKoGPT


def run(args: argparse.Namespace) -> None:
    texts = read_texts(args.text)
    with memory_errors():
        model, tokenizer = load(args, fast=not args.reference)
        if head_of(model) is None:
            own = None if isinstance(model, FastKoGPT) else type(model)
            load_head(model, Path(args.model or BOX), own)
        found = classify(model, tokenizer, texts, batch_size=args.batch_size)
    for contents, prediction in zip(texts, found, strict=True):
        if args.json:
            print_json({"text": contents if len(contents) > 1 else contents[0], **told(prediction)})
        else:
            print(described(prediction), *contents, sep="\t")


def read_texts(given: list[str]) -> list[list[str]]:
    """The texts asked for, each as its contents."""
    if "-" not in given:
        return [given]
    if len(given) > 1:
        raise UsageError("- reads texts from stdin, and goes alone")
    lines = (line.removesuffix("\r") for line in read_text("-").split("\n"))
    texts = [line.split("\t") for line in lines if line]
    if not texts:
        raise InputRefusedError("standard input holds no text to classify")
    return texts


def described(prediction: Prediction) -> str:
    if prediction.value is not None:
        return f"{prediction.value:.3f}"
    return f"{prediction.label}\t{max(prediction.probabilities.values()):.1%}"


def told(prediction: Prediction) -> dict[str, object]:
    if prediction.value is not None:
        return {"value": prediction.value}
    return {"label": prediction.label, "probabilities": prediction.probabilities}
