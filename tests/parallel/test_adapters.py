"""Adapters in a model that several processes hold together."""

import torch

from kogpt.adapters import (
    LoRAConfig,
    PromptConfig,
    attach_prompt,
    load_adapters,
    write_adapter,
)
from kogpt.adapters.config import TARGETS
from kogpt.checkpoint import ConversionOptions, convert, load_model
from kogpt.parallel import Parallel
from kogpt.parallel.loading import load_parallel
from tests.adapters.filled import trained_lora
from tests.parallel.launch import run
from tests.parallel.tiny import CONFIG, some_ids, tiny_model, write_tiny

OPTIONS = ConversionOptions(quantize="int8")


def compare(parallel, folder, adapters):
    model = load_parallel(folder, parallel, adapters=adapters)
    expected = load_model(folder)
    load_adapters(expected, adapters)
    assert model.prefix_ids == expected.prefix_ids
    prefix = torch.tensor(list(model.prefix_ids), dtype=torch.long).expand(4, -1)
    ids = torch.cat((prefix, some_ids()), dim=1)
    assert not any("lora" in name and p.requires_grad for name, p in model.named_parameters())
    with torch.inference_mode():
        return (model(ids) - expected(ids)).abs().max().item()


def test_updates_and_soft_prompts_serve_a_model_in_parts(tmp_path):
    folder = write_tiny(tmp_path / "model")
    for seed in (1, 2):
        model = tiny_model()
        trained_lora(model, LoRAConfig(TARGETS, rank=3), seed)
        write_adapter(tmp_path / f"lora-{seed}", model, folder)
    model = tiny_model()
    attach_prompt(model, PromptConfig(tokens=4), torch.Generator().manual_seed(1))
    write_adapter(tmp_path / "prompt", model, folder)
    adapters = [str(tmp_path / name) for name in ("lora-1", "prompt", "lora-2")]
    for found in run(2, compare, str(folder), adapters, tensor=2):
        assert 0 < found < 1e-5


def test_weights_that_are_integers_are_widened(tmp_path):
    source = write_tiny(tmp_path / "model")
    convert(source, tmp_path / "int8", OPTIONS)
    model, expected = load_parallel(tmp_path / "int8", Parallel()), load_model(tmp_path / "int8")
    assert torch.equal(model(some_ids()), expected(some_ids()))
    assert CONFIG.num_parameters == sum(p.numel() for p in model.parameters())
