"""Updates folded into weights, in memory and from folder to folder."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.testing._internal.two_tensor import TwoTensor

import kogpt
from kogpt.adapters import (
    TARGETS,
    LoRAConfig,
    LoRALinear,
    PromptConfig,
    attach_head,
    attach_lora,
    attach_prompt,
    load_adapters,
    load_classifier,
    merge,
    merge_checkpoint,
    write_adapter,
)
from kogpt.checkpoint import (
    ConversionOptions,
    convert,
    load_model,
    open_checkpoint,
    resources,
    verify,
    write_checkpoint,
    writer,
)
from kogpt.checkpoint.manifest import MANIFEST_NAME
from kogpt.cli import main
from kogpt.errors import InputRefusedError, NotEnoughResourcesError
from kogpt.model import KoGPT
from tests.adapters.filled import trained_lora
from tests.checkpoint.tiny import CONFIG, tiny_state
from tests.model import swaps
from tests.model.swaps import WithGroupedQueries

COMPANIONS = {"tokenizer_config.json": b"{}"}


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16])
def base(request, tmp_path):
    state = tiny_state(dtype=request.param)
    write_checkpoint(
        tmp_path / "base", CONFIG, state, files=COMPANIONS, license_notice="one of its own"
    )
    return tmp_path / "base"


@pytest.fixture
def adapters(tmp_path):
    """Two of updates, which share layers."""
    folders = []
    for seed, targets in ((1, TARGETS), (2, ("q_proj", "fc_in"))):
        model = KoGPT(CONFIG)
        trained_lora(model, LoRAConfig(targets=targets, rank=seed, alpha=1.0), seed)
        folders.append(tmp_path / f"lora{seed}")
        write_adapter(folders[-1], model, tmp_path)
    return folders


def deltas(folders) -> dict[str, torch.Tensor]:
    """What weights are to change by, in float64, from the files."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for folder in folders:
        table = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        for key, A in tensors.items():
            if key.endswith("lora_A.weight"):
                B = tensors[key.replace("lora_A", "lora_B")].double()
                name = key.removeprefix("base_model.model.").replace(".lora_A", "")
                delta = table["lora_alpha"] / table["r"] * B @ A.double()
                found[name] = found.get(name, 0) + delta
    return found


def test_a_merged_folder_holds_the_sums_rounded_once(base, adapters, tmp_path):
    report = merge_checkpoint(base, adapters, tmp_path / "out", quiet=True)
    before, after = (load_model(folder, "float32") for folder in (base, tmp_path / "out"))
    with open_checkpoint(base) as reader:
        stored = reader.stored_dtype
    changed = deltas(adapters)
    assert report.matrices == len(changed) == 12
    for name, value in after.state_dict().items():
        exact = before.state_dict()[name].double() + changed.get(name, 0)
        if name not in changed:
            assert torch.equal(value.double(), exact), name
        else:  # sums in float32, and one rounding
            spacing = torch.finfo(stored).eps * exact.abs() / 2
            assert ((value.double() - exact).abs() <= spacing + 1e-6).all(), name


def scaled_adapter(folder: Path, factor: float) -> Path:
    """An adapter whose matrices B are all of one number, and A of ones."""
    model = KoGPT(CONFIG)
    attach_lora(model, LoRAConfig(targets=("q_proj",), rank=1, alpha=1.0))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.fill_(factor if "lora_B" in name else 1.0)
    write_adapter(folder, model, folder.parent)
    return folder


@pytest.mark.parametrize(
    ("dtype", "lost"), [(torch.float32, 0.0), (torch.bfloat16, 1.0), (torch.float16, 0.5)]
)
def test_what_rounding_undoes_is_told(tmp_path, dtype, lost):
    """Weights of 1 and 1/16: an update of 0.0003 is too small for both in bfloat16."""
    state = tiny_state(CONFIG, dtype)
    for name, tensor in state.items():
        if "q_proj" in name:
            tensor.fill_(1.0)[::2] = 1 / 16
    write_checkpoint(tmp_path / "base", CONFIG, state)
    adapter = scaled_adapter(tmp_path / "small", 0.0001)
    report = merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out", quiet=True)
    assert report.rounded_away == lost == report.to_dict()["rounded_away"]
    told = f"rounding undid {lost:.1%} of the changes; with a copy in float32"
    assert (told in str(report)) == (lost > 0)
    before, after = (load_model(tmp_path / name, torch.float32) for name in ("base", "out"))
    changed = [a != b for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert sum(int(each.sum()) for each in changed) == (1 - lost) * 2 * CONFIG.n_embd**2


def test_sums_that_the_dtype_cannot_hold_are_refused_with_a_way_out(tmp_path):
    write_checkpoint(tmp_path / "base", CONFIG, tiny_state(CONFIG, torch.float16))
    adapter = scaled_adapter(tmp_path / "large", 1e5)
    told = (
        r"base: transformer.h.0.attn.q_proj.weight with .*large has values that float16 cannot "
        r"hold; kogpt convert .*base WIDE --dtype float32 makes a copy"
    )
    with pytest.raises(InputRefusedError, match=told):
        merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_merged_folder_keeps_what_belongs_to_the_weights(base, adapters, tmp_path):
    merge_checkpoint(base, adapters, tmp_path / "out", quiet=True)
    assert verify(tmp_path / "out", quiet=True).license == "one of its own"
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == b"{}"
    dtypes = []
    for folder in (base, tmp_path / "out"):
        tensors = json.loads((folder / MANIFEST_NAME).read_text())["tensors"]
        dtypes.append({name: entry["dtype"] for name, entry in tensors.items()})
    assert dtypes[0] == dtypes[1]


def test_merging_in_memory_leaves_plain_layers_with_the_same_logits(model, adapters, ids):
    load_adapters(model, adapters)
    wanted = model(ids)
    names = set(KoGPT(CONFIG).state_dict())
    assert set(model.state_dict()) != names
    merge(model)
    assert set(model.state_dict()) == names
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert torch.allclose(model(ids), wanted, rtol=0, atol=1e-5)


def test_merging_is_that_of_peft(tmp_path, ids):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    write_checkpoint(tmp_path / "base", CONFIG, tiny_state())
    theirs = transformers.GPTJForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = KoGPT(CONFIG)
    trained_lora(model, LoRAConfig(rank=3, alpha=5.0))
    write_adapter(tmp_path / "a", model, tmp_path / "base")
    merged = peft.PeftModel.from_pretrained(theirs, tmp_path / "a").merge_and_unload()
    merge_checkpoint(tmp_path / "base", tmp_path / "a", tmp_path / "out", quiet=True)
    ours = load_model(tmp_path / "out").state_dict()
    for name, value in merged.state_dict().items():
        if name in ours:
            assert torch.allclose(ours[name], value, rtol=0, atol=1e-6), name
    opened = transformers.GPTJForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.allclose(opened.eval()(ids).logits, merged.eval()(ids).logits, rtol=0, atol=1e-5)


def test_a_head_is_written_beside_the_weights(tmp_path, ids):
    write_checkpoint(tmp_path / "base", CONFIG, tiny_state())
    model = KoGPT(CONFIG)
    trained_lora(model, LoRAConfig())
    attach_head(model, 3, labels=["나쁨", "보통", "좋음"])
    write_adapter(tmp_path / "a", model, tmp_path / "base")
    assert merge_checkpoint(tmp_path / "base", tmp_path / "a", tmp_path / "b", quiet=True).has_head
    trained_lora(plain := KoGPT(CONFIG), LoRAConfig(), seed=9)
    write_adapter(tmp_path / "c", plain, tmp_path / "b")
    merge_checkpoint(tmp_path / "b", tmp_path / "c", tmp_path / "d", quiet=True)
    for folder in ("b", "d"):
        head = load_classifier(tmp_path / folder).score
        assert torch.equal(head.weight, model.score.weight)
        assert head.labels == ("나쁨", "보통", "좋음")


def test_a_head_of_the_source_keeps_its_labels(tmp_path, adapters):
    head = {"score.weight": torch.ones(2, CONFIG.n_embd)}
    base, labels = tmp_path / "base", ["부정", "긍정"]
    write_checkpoint(base, CONFIG, {**tiny_state(), **head}, labels=labels)
    merge_checkpoint(base, adapters, tmp_path / "out", quiet=True)
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["id2label"] == {"0": "부정", "1": "긍정"}
    assert described["label2id"] == {"부정": 0, "긍정": 1}


def test_a_head_of_an_adapter_has_no_labels_of_the_source(tmp_path):
    head = {"score.weight": torch.ones(2, CONFIG.n_embd)}
    base = tmp_path / "base"
    write_checkpoint(base, CONFIG, {**tiny_state(), **head}, labels=["부정", "긍정"])
    trained_lora(model := KoGPT(CONFIG), LoRAConfig())
    attach_head(model, 3)
    write_adapter(tmp_path / "a", model, base)
    merge_checkpoint(base, tmp_path / "a", tmp_path / "out", quiet=True)
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["id2label"] == {str(i): f"LABEL_{i}" for i in range(3)}


def test_an_interrupted_merge_leaves_nothing_since_nothing_could_resume_it(
    tmp_path, adapters, monkeypatch
):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    write_checkpoint(tmp_path / "base", CONFIG, tiny_state())
    monkeypatch.setattr(writer, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merge_checkpoint(tmp_path / "base", adapters, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_what_a_merge_left_that_was_killed_at_its_end_is_swept_away(tmp_path, adapters):
    write_checkpoint(tmp_path / "base", CONFIG, tiny_state())
    merge_checkpoint(tmp_path / "base", adapters, tmp_path / "out", quiet=True)
    (tmp_path / ".out.partial").mkdir()
    with pytest.raises(InputRefusedError, match="out: exists already"):
        merge_checkpoint(tmp_path / "base", adapters, tmp_path / "out", quiet=True)
    assert not list(tmp_path.glob(".*"))


def test_a_disk_without_room_is_told_before_anything_is_merged(tmp_path, adapters, monkeypatch):
    write_checkpoint(tmp_path / "base", CONFIG, tiny_state())
    monkeypatch.setattr(resources, "free_disk", lambda *_: 0)
    monkeypatch.setattr(writer, "write_shards", None)
    with pytest.raises(NotEnoughResourcesError):
        merge_checkpoint(tmp_path / "base", adapters, tmp_path / "out", quiet=True)
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(tmp_path, adapters):
    write_checkpoint(tmp_path / "base", CONFIG, tiny_state())
    out = tmp_path / "out"
    convert(tmp_path / "base", tmp_path / "int8", ConversionOptions(quantize="int8", quiet=True))
    with pytest.raises(InputRefusedError, match=r"int8: quantised, .*convert .*int8 WIDENED"):
        merge_checkpoint(tmp_path / "int8", adapters, out, quiet=True)
    convert(tmp_path / "int8", tmp_path / "wide", ConversionOptions(quiet=True))
    merge_checkpoint(tmp_path / "wide", adapters, tmp_path / "merged", quiet=True)
    model = KoGPT(CONFIG)
    attach_prompt(model, PromptConfig(3))
    write_adapter(tmp_path / "prompt", model, tmp_path / "base")
    with pytest.raises(InputRefusedError, match="prompt: a soft prompt, which is no change"):
        merge_checkpoint(tmp_path / "base", tmp_path / "prompt", out, quiet=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputRefusedError, match="full: exists already"):
        merge_checkpoint(tmp_path / "base", adapters, tmp_path / "full", quiet=True)
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_integers_in_memory_are_not_merged(tmp_path):
    write_checkpoint(tmp_path / "base", CONFIG, tiny_state())
    convert(tmp_path / "base", tmp_path / "int8", ConversionOptions(quantize="int8", quiet=True))
    model = load_model(tmp_path / "int8", quantized=True)
    attach_lora(model, LoRAConfig())
    with pytest.raises(ValueError, match="h.0.attn.q_proj keeps integers"):
        merge(model)


def packed(layer):
    """A weight that is a tensor of a kind of its own, as libraries that quantise have them."""
    layer.weight = nn.Parameter(TwoTensor(layer.weight.detach(), layer.weight.detach()))


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.1),
        packed,
    ],
    ids=["computed", "pruned", "packed"],
)
def test_weights_that_are_no_plain_parameters_are_not_merged(change):
    """What is written to them would be lost with them."""
    model = KoGPT(CONFIG)
    change(model.transformer.h[1].attn.q_proj)
    attach_lora(model, LoRAConfig())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"h\.1\.attn\.q_proj\.weight is no parameter of num"):
        merge(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(value.equal(after[name]) for name, value in before.items())


class Doubling(nn.Module):
    """Called as a linear layer is, but none."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.in_features, self.out_features = layer.weight, *layer.weight.shape

    def forward(self, x):
        return 2 * F.linear(x, self.weight)


def test_what_is_only_called_as_a_linear_layer_is_not_merged():
    model = KoGPT(CONFIG)
    attention = model.transformer.h[0].attn
    attention.q_proj = Doubling(attention.q_proj)
    attach_lora(model, LoRAConfig())
    with pytest.raises(ValueError, match=r"h\.0\.attn\.q_proj is no nn.Linear, but a Doubling"):
        merge(model)


def test_sums_are_float32_under_autocast_too():
    model = KoGPT(CONFIG)
    trained_lora(model, LoRAConfig())
    other = copy.deepcopy(model)
    merge(model)
    with torch.autocast("cpu", torch.bfloat16):
        merge(other)
    for value, found in zip(model.parameters(), other.parameters(), strict=True):
        assert value.equal(found)


def test_a_prepared_model_is_not_changed(tmp_path, adapters):
    fast, _ = kogpt.load(fast=True)
    for change in (
        merge,
        lambda model: load_adapters(model, adapters),
        lambda model: attach_prompt(model, PromptConfig(3)),
    ):
        with pytest.raises(ValueError, match="prepared for decoding stays as it is"):
            change(fast)


def test_a_class_of_ones_own_is_merged_as_it_is(tmp_path, ids):
    model = WithGroupedQueries(CONFIG).eval()
    write_checkpoint(tmp_path / "base", CONFIG, model.state_dict(), model_class=WithGroupedQueries)
    trained_lora(model, LoRAConfig(targets=TARGETS), 1)
    write_adapter(tmp_path / "lora", model, tmp_path)
    own = f"{swaps.__file__}:WithGroupedQueries"
    paths = (str(tmp_path / name) for name in ("base", "lora", "out"))
    assert main(["merge", *paths, "--architecture", own]) == 0
    merged = load_model(tmp_path / "out", model_class=WithGroupedQueries)
    # In float32 W x + s B (A x) and (W + s B A) x round differently.
    torch.testing.assert_close(merged(ids), model(ids), rtol=0, atol=1e-5)


def test_the_command_merges_and_reports(tmp_path, adapters, capsys):
    write_checkpoint(tmp_path / "base", CONFIG, tiny_state())
    arguments = [str(path) for path in (tmp_path / "base", *adapters, tmp_path / "out")]
    assert main(["merge", *arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["matrices"] == 12 and report["adapters"] == [str(path) for path in adapters]
    assert main(["merge", *arguments]) == 3
    assert "exists already" in capsys.readouterr().err
