"""`kogpt generate`: continue a text."""

import argparse
import dataclasses
import secrets

from kogpt.commands.common import (
    TEMPERATURE,
    load,
    memory_errors,
    print_json,
    processes,
    read_text,
    speculation,
)
from kogpt.errors import UsageError
from kogpt.generation import Generation, SamplingParams, generate, stream
from kogpt.parallel import Parallel


def run(args: argparse.Namespace) -> None:
    if args.logprobs is not None and not args.json:
        raise UsageError("argument --logprobs: only with --json")
    params = sampling_params(args)
    if params.num_beams > 1 and (args.speculate or args.draft_model):
        raise UsageError("argument --beams: not allowed with --speculate or --draft-model")
    parallel = processes(args)
    if parallel.data_size > 1:  # told before they meet, so that none leaves while another comes
        raise UsageError(
            f"{parallel.world_size} processes were started to write one text: argument"
            f" --tensor-parallel must be {parallel.world_size}, is {parallel.tensor_size}"
        )
    with parallel:
        write(args, params, parallel)


def write(args: argparse.Namespace, params: SamplingParams, parallel: Parallel) -> None:
    """Continues the text; where several processes hold the model, one of them reads and speaks."""
    text, seed = parallel.once(lambda: (read_text(args.prompt), secrets.randbits(64)))
    if params.seed is None and params.num_beams == 1:  # all must draw alike
        params = dataclasses.replace(params, seed=seed)
    speculate = speculation(args, parallel)
    model, tokenizer = load(args, parallel, fast=not args.reference)
    prompt = tokenizer.encode(text, bos=tokenizer.add_bos, normalize=args.normalize)
    with memory_errors():
        if args.json or args.samples > 1 or params.num_beams > 1:
            for result in generate(model, tokenizer, [prompt], params, speculate=speculate):
                if parallel.first:
                    show(text, result, args.json)
        else:
            for piece in stream(model, tokenizer, prompt, params, speculate=speculate):
                if parallel.first:
                    print(piece, end="", flush=True)
            if parallel.first:
                print()


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The parameters that the flags name; flags left out keep the parameters' own defaults."""
    sampled = None if (args.beams or 1) > 1 else TEMPERATURE  # a beam search draws nothing
    given = {
        "temperature": sampled if args.temperature is None else args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "typical_p": args.typical_p,
        "repetition_penalty": args.repetition_penalty,
        "presence_penalty": args.presence_penalty,
        "frequency_penalty": args.frequency_penalty,
        "no_repeat_ngram_size": args.no_repeat_ngram_size,
        "logit_bias": args.logit_bias and parse_biases(args.logit_bias),
        "banned_words": args.ban,
        "stop": args.stop,
        "stop_ids": args.stop_id,
        "min_new_tokens": args.min_new_tokens,
        "max_new_tokens": args.max_new_tokens,
        "n": args.samples,
        "seed": args.seed,
        "logprobs": args.logprobs,
        "echo": not args.json if args.echo is None else args.echo,
        "num_beams": args.beams,
        "length_penalty": args.length_penalty,
        "early_stopping": args.early_stopping,
    }
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def parse_biases(texts: list[str]) -> dict[int, float]:
    """Biases of different ids."""
    biases: dict[int, float] = {}
    for id, bias in map(parse_bias, texts):
        if id in biases:
            raise UsageError(f"argument --logit-bias: id {id} is given twice")
        biases[id] = bias
    return biases


def parse_bias(text: str) -> tuple[int, float]:
    """`ID=X` as a pair."""
    id, _, bias = text.partition("=")
    try:
        return int(id), float(bias)
    except ValueError:
        raise UsageError(f"argument --logit-bias: {text!r} is not of the form ID=X") from None


def show(prompt: str, result: Generation, as_json: bool) -> None:
    """One sample: its text, after an empty line from the second on, or all that is known of it."""
    if as_json:
        print_json({"prompt": prompt, **dataclasses.asdict(result)})
    else:
        print(f"\n{result.text}" if result.sample_index else result.text)
