"""The contenders of `benchmark_peers.py`: each loads one format of weights and generates with it.

    python scripts/peers.py NAME SOURCE WORK --threads N [--convert]

is one contender as a process of its own. With `--convert` it writes its format of the weights of
SOURCE into WORK, unless that is there. Without, it loads them, says so in a line of JSON, and then
answers every line {"prompt": ids, "count": N} on standard input with one of its own.

Peers are asked through their own `generate`, and decide themselves in what precision activations
and the cache are kept; `about` tells it.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installing


class Contender:
    """One system with one format of weights.

    Attributes:
        module: what must be installed.
        folder: name of what it converts the weights to; None if it reads them as they are.
        bits: of a weight in the blocks, and in the head.
    """

    module: str
    folder: str | None = None
    bits: tuple[int, int]

    def __init__(self, source: Path, threads: int) -> None:
        self.source, self.threads = source, threads

    def convert(self, folder: Path) -> None:
        """Writes the weights of the source in a format of its own."""
        raise NotImplementedError

    def load(self, folder: Path) -> None:
        """Reads the weights."""
        raise NotImplementedError

    def generate(self, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        """New ids, greedily and past the end of a text, and the seconds until each was known."""
        raise NotImplementedError

    def step_bytes(self, tokens: int, count: int) -> float:
        """Bytes of weights for one token, scales and cache left out."""
        config = json.loads((self.source / "config.json").read_text())
        C, V = config["n_embd"], config["vocab_size"]
        blocks = config["n_layer"] * (4 * C * C + 2 * C * (config.get("n_inner") or 4 * C))
        return (blocks * self.bits[0] + V * C * self.bits[1]) / 8

    def about(self) -> dict[str, str]:
        """What it has decided by itself."""
        return {}


class Clock:
    """A streamer of transformers that looks at the clock."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.times: list[float] = []

    def put(self, ids: object) -> None:
        self.times.append(time.perf_counter() - self.start)

    def end(self) -> None:
        pass


# --- ours ---


class KoGPT(Contender):
    """Ours in bfloat16."""

    module = "kogpt"
    dtype: str | None = "bfloat16"

    def load(self, folder: Path) -> None:
        import torch

        import kogpt

        torch.set_num_threads(self.threads)
        dtype = self.dtype and getattr(torch, self.dtype)
        self.model, _ = kogpt.load(folder, dtype=dtype, fast=True)

    def generate(self, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        import torch

        from kogpt.benchmarking import generate
        from kogpt.model import KVCache

        cache = KVCache(len(prompt) + count)
        ids, times = generate(self.model, torch.tensor([prompt]), count, cache)
        return ids[0].tolist(), times

    def step_bytes(self, tokens: int, count: int) -> float:
        from kogpt.benchmarking import step_bytes

        return step_bytes(self.model, 1, tokens, count)


class KoGPTInt8(KoGPT):
    folder = "kogpt-int8"
    scheme = "int8"
    dtype = None  # of what is not quantised, as stored

    def convert(self, folder: Path) -> None:
        from kogpt.cli import main

        if main(["convert", str(self.source), str(folder), "--quantize", self.scheme]):
            raise RuntimeError("kogpt convert failed")


class KoGPTInt4(KoGPTInt8):
    folder = "kogpt-int4"
    scheme = "int4"


# --- peers ---


class Transformers(Contender):
    """The model that the ecosystem has, in bfloat16."""

    module = "transformers"
    dtype = "bfloat16"
    bits = (16, 16)

    def load(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(self.threads)
        dtype = getattr(torch, self.dtype)
        self.take(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval())

    def take(self, model: Any) -> None:
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        self.model = model

    def generate(self, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        import torch

        ids, clock = torch.tensor([prompt]), Clock()
        options = {"max_new_tokens": count, "do_sample": False, "streamer": clock}
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return out[0, len(prompt) :].tolist(), clock.times[1:]  # the first is the prompt's


class TransformersFloat32(Transformers):
    dtype = "float32"
    bits = (32, 32)


class CTranslate2(Contender):
    """Weights of 8 bits, activations quantised on the way."""

    module = "ctranslate2"
    folder = "ctranslate2-int8"
    bits = (8, 8)

    def convert(self, folder: Path) -> None:
        from ctranslate2.converters import TransformersConverter

        class Converter(TransformersConverter):
            """Names the rows of the embedding that have no token: the format wants all named."""

            def load_tokenizer(self, tokenizer_class: Any, name: str, **options: Any) -> Any:
                tokenizer = tokenizer_class.from_pretrained(name, **options)
                rows = json.loads((Path(name) / "config.json").read_text())["vocab_size"]
                tokenizer.add_tokens([f"<row{i}>" for i in range(len(tokenizer), rows)])
                return tokenizer

        converter = Converter(str(self.source), low_cpu_mem_usage=True)
        converter.convert(str(folder), quantization="int8")

    def load(self, folder: Path) -> None:
        import ctranslate2

        options = {"compute_type": "int8", "intra_threads": self.threads}
        self.generator = ctranslate2.Generator(str(folder), device="cpu", **options)
        self.tokens = json.loads((folder / "vocabulary.json").read_text())

    def generate(self, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        clock = Clock()
        results = self.generator.generate_batch(
            [[self.tokens[id] for id in prompt]],
            max_length=count,
            min_length=count,
            include_prompt_in_result=False,  # so that the prompt is read at once
            callback=lambda step: bool(clock.put(step)),
        )
        return results[0].sequences_ids[0], clock.times

    def about(self) -> dict[str, str]:
        return {"compute type": self.generator.compute_type}


class OpenVINO(Transformers):
    """Weights of 8 bits, through optimum-intel."""

    module = "optimum.intel"
    folder = "openvino-int8"
    bits = (8, 8)
    scheme: dict[str, Any] = {"bits": 8}
    told = ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "KV_CACHE_PRECISION")

    def convert(self, folder: Path) -> None:
        from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

        scheme = OVWeightQuantizationConfig(**self.scheme)
        OVModelForCausalLM.from_pretrained(
            self.source, export=True, quantization_config=scheme, compile=False
        ).save_pretrained(folder)

    def load(self, folder: Path) -> None:
        from optimum.intel import OVModelForCausalLM

        options = {"INFERENCE_NUM_THREADS": str(self.threads)}
        self.take(OVModelForCausalLM.from_pretrained(folder, ov_config=options))

    def about(self) -> dict[str, str]:
        compiled = self.model.request.get_compiled_model()
        values = {name: compiled.get_property(name) for name in self.told}
        return {
            name: value.get_type_name() if hasattr(value, "get_type_name") else str(value)
            for name, value in values.items()
        }


class OpenVINOInt4(OpenVINO):
    """Groups of 128 with zero points, the embedding and the head of 8 bits: its own default."""

    folder = "openvino-int4"
    bits = (4, 8)
    scheme = {"bits": 4, "sym": False, "group_size": 128, "ratio": 1.0}


CONTENDERS: dict[str, type[Contender]] = {
    "KoGPT bf16": KoGPT,
    "KoGPT int8": KoGPTInt8,
    "KoGPT int4": KoGPTInt4,
    "transformers bf16": Transformers,
    "transformers fp32": TransformersFloat32,
    "CTranslate2 int8": CTranslate2,
    "OpenVINO int8": OpenVINO,
    "OpenVINO int4": OpenVINOInt4,
}


# --- the process ---

UNFINISHED = ".part"


def missing(name: str) -> str | None:
    """The module that a contender lacks."""
    module = CONTENDERS[name].module
    try:
        return None if importlib.util.find_spec(module) else module
    except ModuleNotFoundError:  # of a parent package
        return module


def convert(contender: Contender, work: Path) -> None:
    """Writes the contender's format once; what was interrupted is begun anew."""
    if contender.folder is None or (work / contender.folder).exists():
        return
    part = work / (contender.folder + UNFINISHED)
    shutil.rmtree(part, ignore_errors=True)
    contender.convert(part)
    part.rename(work / contender.folder)


def peak_memory() -> int:
    """Most bytes that were resident, from the start of the process on."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def serve(contender: Contender, work: Path, answers: Any) -> None:
    """Loads, says so, answers until the questions end."""
    start = time.perf_counter()
    contender.load(work / contender.folder if contender.folder else contender.source)
    ready = {"load": time.perf_counter() - start, "about": contender.about()}
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        prompt, count = (question := json.loads(line))["prompt"], question["count"]
        ids, times = contender.generate(prompt, count)
        found = {"ids": ids, "times": times, "memory": peak_memory()}
        found["step_bytes"] = contender.step_bytes(len(prompt), count)
        print(json.dumps(found), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--convert", action="store_true")
    args = parser.parse_args()
    contender = CONTENDERS[args.name](args.source, args.threads)
    if args.convert:
        convert(contender, args.work)
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries write what they like to standard output
    serve(contender, args.work, answers)


if __name__ == "__main__":
    main()
