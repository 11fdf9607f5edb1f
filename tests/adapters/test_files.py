"""Adapters' files against the peft library, both ways, and what is refused of them."""

import json
import resource
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kogpt.adapters import (
    TARGETS,
    LoRAConfig,
    PromptConfig,
    attach_head,
    attach_prompt,
    expressions,
    load_adapters,
    read_adapter,
    write_adapter,
)
from kogpt.adapters.config import ADDED
from kogpt.checkpoint.safetensors_file import SafetensorsFile
from kogpt.checkpoint.writer import write_checkpoint
from kogpt.errors import InputRefusedError, NotEnoughResourcesError
from kogpt.model import KoGPT
from tests.adapters.filled import trained_lora
from tests.checkpoint.tiny import CONFIG, tiny_state

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    write_checkpoint(folder, CONFIG, tiny_state(), license_notice="one of its own")
    return folder


def theirs(base: Path, outputs: int | None = None) -> torch.nn.Module:
    """The model in transformers; with `outputs`, the one of a classifier."""
    if outputs is None:
        return transformers.GPTJForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return transformers.GPTJForSequenceClassification.from_pretrained(
        base, dtype=torch.float32, num_labels=outputs
    ).eval()


def save(config: "peft.PeftConfig", base: Path, folder: Path, outputs: int | None = None):
    """An adapter that peft made and wrote, with numbers other than the first ones."""
    torch.manual_seed(6)
    adapted = peft.get_peft_model(theirs(base, outputs), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "score" in name:
            parameter.data.normal_(0.0, 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(folder)
    return adapted.eval()


def run(model: KoGPT, ids: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) behind the soft prompt, if there is one."""
    prefix = torch.tensor([model.prefix_ids], dtype=torch.long).expand(len(ids), -1)
    return model(torch.cat((prefix, ids), dim=1))[:, len(model.prefix_ids) :]


def classify(model: KoGPT, ids: torch.Tensor) -> torch.Tensor:
    prefix = torch.tensor([model.prefix_ids], dtype=torch.long).expand(len(ids), -1)
    return model.score(model.transformer(torch.cat((prefix, ids), dim=1))[:, -1])


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(
        found, wanted, rtol=0, atol=1e-6 * max(1.0, wanted.detach().abs().max().item())
    )


LORAS = {
    "attention": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]},
    "everything": {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"},
    "stabilised": {"r": 5, "use_rslora": True, "target_modules": ["k_proj", "fc_out"]},
    "one layer": {"r": 2, "target_modules": ["fc_in"], "layers_to_transform": [1]},
    "all layers": {"r": 2, "target_modules": ["fc_in"], "layers_to_transform": []},
    "expression": {"r": 2, "target_modules": r".*\.1\..*(out_proj|fc_in)"},
    "all but some": {
        "r": 2,
        "target_modules": ["q_proj", "fc_in"],
        "exclude_modules": ["h.1.attn.q_proj", "1.mlp.fc_in", "proj"],
    },
    "all but what an expression fits": {
        "r": 2,
        "target_modules": r".*(_proj|fc_in)",
        "exclude_modules": r".*(\.0\..*|k_proj)",
    },
    "patterns": {
        "r": 2,
        "target_modules": ["q_proj", "fc_in"],
        "rank_pattern": {"fc_in": 4, "h.0.attn.q_proj": 3},
        "alpha_pattern": {"transformer.h.1.mlp.fc_in": 3},
        "use_rslora": True,
    },
    "a dot is any character": {
        "r": 2,
        "target_modules": ["q_proj"],
        "alpha_pattern": {"h.1.attn.q.proj": 77},
        "rank_pattern": {"attn.q": 5, "attn.q.proj": 3},
    },
}


@pytest.mark.parametrize("name", LORAS)
def test_updates_that_peft_wrote_give_its_logits(name, base, model, ids, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **LORAS[name])
    adapted = save(config, base, tmp_path / "a")
    load_adapters(model, tmp_path / "a")
    assert same(run(model, ids), adapted(ids).logits)


@pytest.mark.parametrize(
    "config",
    [
        LoRAConfig(),
        LoRAConfig(targets=TARGETS, rank=3, alpha=5.5),
        LoRAConfig(targets=("fc_in", "out_proj"), rank=1, alpha=2.0, dropout=0.1),
    ],
)
def test_updates_written_here_give_the_same_logits_in_peft(config, base, model, ids, tmp_path):
    trained_lora(model, config)
    write_adapter(tmp_path / "a", model, base)
    adapted = peft.PeftModel.from_pretrained(theirs(base), tmp_path / "a").eval()
    assert same(adapted(ids).logits, run(model, ids))
    again = KoGPT(CONFIG).eval()
    again.load_state_dict(tiny_state())
    load_adapters(again, tmp_path / "a")
    assert torch.equal(run(again, ids), run(model, ids))


@pytest.mark.parametrize("name", ["patterns", "one layer", "stabilised"])
def test_updates_that_differ_among_layers_are_written_as_such(name, base, model, ids, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **LORAS[name])
    save(config, base, tmp_path / "a")
    load_adapters(model, tmp_path / "a")
    write_adapter(tmp_path / "b", model, base)
    adapted = peft.PeftModel.from_pretrained(theirs(base), tmp_path / "b").eval()
    assert same(adapted(ids).logits, run(model, ids))


PROMPTS = {
    "prompt tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "mlp": peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=5
    ),
    "lstm": peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        encoder_hidden_size=6,
        encoder_reparameterization_type="LSTM",
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_that_peft_wrote_give_its_logits(name, base, model, ids, tmp_path):
    adapted = save(PROMPTS[name], base, tmp_path / "a")
    load_adapters(model, tmp_path / "a")
    tokens = PROMPTS[name].num_virtual_tokens
    assert len(model.prefix_ids) == tokens
    assert same(run(model, ids), adapted(ids).logits[:, tokens:])


@pytest.mark.parametrize("encoder", ["none", "mlp", "lstm"])
def test_prompts_written_here_give_the_same_logits_in_peft(encoder, base, model, ids, tmp_path):
    attach_prompt(model, PromptConfig(4, encoder, 6), torch.Generator().manual_seed(1))
    write_adapter(tmp_path / "a", model, base)
    kind = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["peft_type"]
    assert kind == ("PROMPT_TUNING" if encoder == "none" else "P_TUNING")
    adapted = peft.PeftModel.from_pretrained(theirs(base), tmp_path / "a").eval()
    assert same(adapted(ids).logits[:, 4:], run(model, ids))


HEADED = {
    "updates": peft.LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["q_proj", "fc_out"], init_lora_weights=False
    ),
    "prompt": peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
    "encoder": peft.PromptEncoderConfig(
        task_type="SEQ_CLS", num_virtual_tokens=4, encoder_hidden_size=5
    ),
}


@pytest.mark.parametrize("name", HEADED)
def test_heads_that_peft_wrote_give_its_logits(name, base, model, ids, tmp_path):
    adapted = save(HEADED[name], base, tmp_path / "a", outputs=3)
    load_adapters(model, tmp_path / "a")
    for row in ids:  # a batch of one needs no padding id in transformers
        assert same(classify(model, row[None]), adapted(row[None]).logits)


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_heads_written_here_give_the_same_logits_in_peft(kind, base, model, ids, tmp_path):
    if kind == "lora":
        trained_lora(model, LoRAConfig())
    else:
        attach_prompt(model, PromptConfig(4, "mlp"))
    attach_head(model, 3, torch.Generator().manual_seed(1))
    write_adapter(tmp_path / "a", model, base)
    adapted = peft.PeftModel.from_pretrained(theirs(base, 3), tmp_path / "a").eval()
    for row in ids:
        assert same(adapted(row[None]).logits, classify(model, row[None]))


def test_several_updates_add_up_and_prompts_follow_one_another(base, model, ids, tmp_path):
    names = []
    for seed in (1, 2):
        fresh = KoGPT(CONFIG)
        trained_lora(fresh, LoRAConfig(rank=seed, alpha=3.0 * seed), seed)
        write_adapter(tmp_path / f"lora{seed}", fresh, base)
        names.append(f"l{seed}")
    adapted = peft.PeftModel.from_pretrained(theirs(base), tmp_path / "lora1", adapter_name="l1")
    adapted.load_adapter(tmp_path / "lora2", adapter_name="l2")
    adapted.base_model.set_adapter(names)
    load_adapters(model, [tmp_path / "lora1", tmp_path / "lora2"])
    assert same(run(model, ids), adapted.eval()(ids).logits)
    prompts = []
    for seed in (1, 2):
        fresh = KoGPT(CONFIG)
        attach_prompt(fresh, PromptConfig(seed), torch.Generator().manual_seed(seed))
        write_adapter(tmp_path / f"prompt{seed}", fresh, base)
        prompts.append(read_adapter(tmp_path / f"prompt{seed}", CONFIG).prompt)
    load_adapters(model, [tmp_path / "prompt2", tmp_path / "prompt1"])
    rows = model.transformer.wte(torch.tensor(model.prefix_ids))
    assert torch.equal(rows, torch.cat(prompts[::-1]))


def test_the_notice_of_the_base_goes_with_an_adapter(base, model, tmp_path):
    trained_lora(model, LoRAConfig())
    write_adapter(tmp_path / "a", model, base)
    assert read_adapter(tmp_path / "a", CONFIG).license == "one of its own"
    write_adapter(tmp_path / "a", model, base, license_notice="another")
    assert read_adapter(tmp_path / "a", CONFIG).license == "another"
    values = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == str(base)


def test_an_adapter_is_replaced_and_other_files_stay(base, model, tmp_path):
    (tmp_path / "log.jsonl").write_text("{}")
    trained_lora(model, LoRAConfig())
    write_adapter(tmp_path, model, base)
    other = KoGPT(CONFIG)
    attach_prompt(other, PromptConfig(3))
    write_adapter(tmp_path, other, base)
    assert read_adapter(tmp_path, CONFIG).prompt is not None
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"log.jsonl", "adapter_config.json", "adapter_model.safetensors"}


def test_an_adapter_that_cannot_be_written_leaves_the_one_before(lora, base, tmp_path):
    before = {path.name: path.read_bytes() for path in lora.iterdir()}
    larger = KoGPT(CONFIG)
    trained_lora(larger, LoRAConfig(rank=8))
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(map(len, before.values())), most))
    try:
        with pytest.raises(NotEnoughResourcesError, match="cannot be written: File too large"):
            write_adapter(lora, larger, base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert {path.name: path.read_bytes() for path in lora.iterdir()} == before


def test_what_is_no_single_adapter_is_not_written(base, model, tmp_path):
    with pytest.raises(ValueError, match="neither updates nor a soft prompt"):
        write_adapter(tmp_path, model, base)
    trained_lora(model, LoRAConfig())
    write_adapter(tmp_path / "a", model, base)
    load_adapters(model, tmp_path / "a")
    with pytest.raises(ValueError, match="transformer.h.0.attn.q_proj has several updates"):
        write_adapter(tmp_path / "b", model, base)
    attach_prompt(model, PromptConfig(3))
    with pytest.raises(ValueError, match="several updates|both updates and a soft prompt"):
        write_adapter(tmp_path / "b", model, base)


@pytest.fixture
def lora(base, model, tmp_path) -> Path:
    trained_lora(model, LoRAConfig(targets=("q_proj",), rank=2))
    write_adapter(tmp_path / "a", model, base)
    return tmp_path / "a"


@pytest.fixture
def prompt(base, model, tmp_path) -> Path:
    attach_prompt(model, PromptConfig(3))
    attach_head(model, 2)
    write_adapter(tmp_path / "a", model, base)
    return tmp_path / "a"


def change(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', of LORA, PROMPT_TUNING, P_TUNING"),
        ({"peft_type": ["LORA"]}, "peft_type is"),
        ({"task_type": "TOKEN_CLS"}, "task_type is 'TOKEN_CLS'"),
        ({"use_dora": True}, "'use_dora' is True: not supported"),
        ({"fan_in_fan_out": True}, "'fan_in_fan_out' is True"),
        ({"a_later_key": {"on": 1}}, "'a_later_key' is .*: not supported"),
        ({"target_parameters": ["x"]}, "'target_parameters'"),
        ({"bias": "all"}, "bias is 'all': must be none"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa': belongs to a base"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is .*: may name score alone"),
        ({"modules_to_save": "score"}, "modules_to_save"),
        ({"layers_pattern": "blocks"}, "layers_pattern is 'blocks'"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform"),
        ({"layers_to_transform": True}, "layers_to_transform is True: must hold numbers"),
        ({"layers_to_transform": 5}, "target_modules is .*: no layer"),
        ({"target_modules": ["lm_head"]}, r"target_modules is \['lm_head'\]: no layer"),
        ({"target_modules": ["proj"]}, r"target_modules is \['proj'\]: no layer"),
        ({"target_modules": [1]}, "target_modules is .*: must be a list of names"),
        ({"target_modules": None}, "target_modules is None"),
        ({"exclude_modules": [1]}, "exclude_modules is .*: must be a list of names"),
        ({"exclude_modules": "((("}, r"exclude_modules is '\(\(\(': is no expression"),
        ({"exclude_modules": ".*"}, r"exclude_modules is '\.\*': leaves no layer"),
        ({"exclude_modules": ["0.attn.q_proj"]}, "h.0.attn.q_proj.lora_A.weight is no part"),
        ({"target_modules": r".*\.v_proj"}, "h.0.attn.v_proj.lora_A.weight is missing"),
        ({"target_modules": r".*\.[qv]_proj"}, "h.0.attn.v_proj.lora_A.weight is missing"),
        ({"target_modules": r".*h\.0\.attn\.q_proj"}, "h.1.attn.q_proj.lora_A.weight is no part"),
        ({"target_modules": "q_proj"}, "target_modules is 'q_proj': no layer"),
        ({"target_modules": r".*\.q_pro"}, "target_modules is .*: no layer"),
        ({"target_modules": "((("}, r"target_modules is '\(\(\(': is no expression: missing \)"),
        (
            {"target_modules": r".*q_proj", "layers_to_transform": [0]},
            r"layers_to_transform is \[0\]: goes with a list of target_modules alone",
        ),
        (
            {"layers_to_transform": 0, "target_modules": r".*q_proj"},
            "layers_to_transform is 0: goes with a list",
        ),
        (
            {"layers_to_transform": [], "target_modules": r".*q_proj"},
            r"layers_to_transform is \[\]: goes with a list",
        ),
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"r": None}, "r is None"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"rank_pattern": {"q.*": 2}}, "rank_pattern is .*not by expressions"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern of q_proj is 0"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern of q_proj is None"),
        ({"alpha_pattern": [1]}, "alpha_pattern is"),
        (
            {"r": 3},
            r"h.0.attn.q_proj.lora_A.weight has shape \[2, 16\], the model and adapter_config.json"
            r" ask for \[3, 16\]",
        ),
        ({"target_modules": ["v_proj"]}, "h.0.attn.v_proj.lora_A.weight is missing"),
        ({"layers_to_transform": [0]}, "h.1.attn.q_proj.lora_A.weight is no part of the adapter"),
        ({"modules_to_save": ["score"]}, "base_model.model.score.weight is missing"),
    ],
)
def test_updates_of_another_kind_are_refused_by_key(values, message, lora):
    change(lora, **values)
    with pytest.raises(InputRefusedError, match=message) as caught:
        read_adapter(lora, CONFIG)
    assert str(lora) in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_of_the_current_folder_runs_where_an_expression_is_tried(
    lora, tmp_path, monkeypatch
):
    (tmp_path / "re.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)
    change(lora, target_modules=r".*q_proj")
    assert len(read_adapter(lora, CONFIG).updates) == 2


def test_an_expression_that_cannot_be_tried_is_refused(lora, monkeypatch):
    change(lora, target_modules=".*")
    with monkeypatch.context() as patch:
        patch.setattr(expressions, "PROGRAM", "import os; os.kill(os.getpid(), 9)")
        with pytest.raises(InputRefusedError, match="cannot be tried: signal 9$"):
            read_adapter(lora, CONFIG)
    monkeypatch.setattr(expressions.sys, "executable", "/nowhere/python")
    with pytest.raises(InputRefusedError, match="cannot be tried: .*No such file"):
        read_adapter(lora, CONFIG)


def test_an_expression_that_takes_for_ever_is_refused(lora, monkeypatch):
    monkeypatch.setattr(expressions, "SECONDS", 0.5)
    change(lora, target_modules="(.|.|.)*!")
    with pytest.raises(InputRefusedError, match=r"'\(\.\|.*: takes more than 0.5 seconds"):
        read_adapter(lora, CONFIG)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_virtual_tokens": 4}, r"prompt_embeddings has shape \[3, 16\]"),
        ({"num_virtual_tokens": 32}, "num_virtual_tokens is 32, the context of the model holds 32"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens is None"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2: must be 1"),
        ({"modules_to_save": None}, "base_model.score.weight is no part of the adapter"),
        ({"use_rslora": True}, "'use_rslora' is True: not supported"),
    ],
)
def test_prompts_of_another_kind_are_refused_by_key(values, message, prompt):
    change(prompt, **values)
    with pytest.raises(InputRefusedError, match=message):
        read_adapter(prompt, CONFIG)


def test_keys_that_are_off_may_be_there(lora):
    change(lora, use_dora=False, a_later_key=None, another={}, exclude_modules=[])
    assert len(read_adapter(lora, CONFIG).updates) == 2


def test_damaged_weights_are_refused_by_name(lora):
    path = lora / "adapter_model.safetensors"
    whole = load_file(path)
    name = "base_model.model.transformer.h.1.attn.q_proj.lora_B.weight"
    for value, message in (
        (whole[name].clone().fill_(float("nan")), "holds NaN or infinity"),
        (whole[name].to(torch.int8), "is int8"),
        (whole[name][:3].clone(), r"has shape \[3, 2\]"),
        (whole[name][0].clone(), r"has shape \[2\]"),
    ):
        save_file({**whole, name: value}, path)
        with pytest.raises(InputRefusedError, match=f"{name} {message}"):
            read_adapter(lora, CONFIG)
    save_file({**whole, "base_model.model.transformer.wte.weight": torch.zeros(1)}, path)
    with pytest.raises(InputRefusedError, match="transformer.wte.weight is no part of the adapter"):
        read_adapter(lora, CONFIG)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputRefusedError, match="adapter_model.safetensors: bad safetensors"):
        read_adapter(lora, CONFIG)


def test_a_config_never_lies_beside_weights_of_another(lora, base, monkeypatch):
    """Not even where the second of the two files finds no room."""

    def put(temporary, path):
        if path.name == "adapter_config.json":
            raise OSError(28, "No space left on device")
        temporary.rename(path)

    other = KoGPT(CONFIG)
    trained_lora(other, LoRAConfig(rank=3))
    monkeypatch.setattr("kogpt.adapters.files.put_in_place", put)
    with pytest.raises(NotEnoughResourcesError):
        write_adapter(lora, other, base)
    assert not (lora / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("head", "told"), [(torch.tensor(1.0), r"\[\]"), (torch.ones(0, 16), r"\[0, 16\]")]
)
def test_a_head_without_outputs_is_refused(lora, head, told):
    path, name = lora / "adapter_model.safetensors", "base_model.model.score.weight"
    save_file({**load_file(path), name: head}, path)
    change(lora, modules_to_save=["score"])
    with pytest.raises(InputRefusedError, match=rf"score.weight has shape {told}, .* \[1, 16\]"):
        read_adapter(lora, CONFIG)


def test_weights_of_another_model_are_refused(lora):
    import dataclasses

    wider = dataclasses.replace(CONFIG, n_embd=32)
    with pytest.raises(InputRefusedError, match=r"ask for \[2, 32\]"):
        read_adapter(lora, wider)


def test_pickles_and_missing_files_are_refused(lora, tmp_path):
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    with pytest.raises(InputRefusedError, match="adapter_model.bin: a pickle; only safetensors"):
        read_adapter(lora, CONFIG)
    with pytest.raises(InputRefusedError, match="nothing/adapter_config.json: No such file"):
        read_adapter(tmp_path / "nothing", CONFIG)


def test_a_pointer_to_weights_is_told_from_damage(lora):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (lora / "adapter_model.safetensors").write_bytes(pointer)
    with pytest.raises(InputRefusedError, match="adapter_model.safetensors: a Git LFS pointer"):
        read_adapter(lora, CONFIG)


def test_two_heads_and_too_many_tokens_are_refused(base, prompt, model, tmp_path):
    fresh = KoGPT(CONFIG)
    with pytest.raises(InputRefusedError, match="has a head, and so has"):
        load_adapters(fresh, [prompt, prompt])
    long = KoGPT(CONFIG)
    attach_prompt(long, PromptConfig(30))
    write_adapter(tmp_path / "long", long, base)
    with pytest.raises(InputRefusedError, match="33 virtual tokens in all"):
        load_adapters(fresh, [prompt, tmp_path / "long"])
    full = KoGPT(CONFIG)
    attach_prompt(full, PromptConfig(29))
    write_adapter(tmp_path / "full", full, base)
    with pytest.raises(InputRefusedError, match="32 virtual tokens in all"):  # no room for a text
        load_adapters(fresh, [prompt, tmp_path / "full"])
    load_adapters(fresh, prompt)
    with pytest.raises(InputRefusedError, match="32 virtual tokens in all"):  # one after the other
        load_adapters(fresh, tmp_path / "full")


def test_what_is_refused_leaves_the_model_as_it_was(base, model, ids, tmp_path):
    trained_lora(model, LoRAConfig(rank=2))
    attach_head(model, 3)
    write_adapter(tmp_path / "a", model, base)
    fresh = KoGPT(CONFIG).eval()
    load_adapters(fresh, tmp_path / "a")
    logits, names = fresh(ids), [name for name, _ in fresh.named_parameters()]
    with pytest.raises(ValueError, match="has a head already"):
        load_adapters(fresh, tmp_path / "a")
    assert fresh(ids).equal(logits) and names == [name for name, _ in fresh.named_parameters()]


def test_what_is_loaded_is_not_trained_further(base, prompt, tmp_path):
    updated, fresh = KoGPT(CONFIG), KoGPT(CONFIG)
    trained_lora(updated, LoRAConfig(rank=2))
    write_adapter(tmp_path / "b", updated, base)
    load_adapters(fresh, [prompt, tmp_path / "b"])
    added = {name: p for name, p in fresh.named_parameters() if ADDED.fullmatch(name)}
    assert {name.rpartition(".")[2] for name in added} == {"weight", "lora_A", "lora_B"}
    assert [name for name, p in added.items() if p.requires_grad] == []


def test_narrower_weights_are_read_as_float32(lora):
    path = lora / "adapter_model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(path).items()}, path)
    update = read_adapter(lora, CONFIG).updates["transformer.h.0.attn.q_proj"]
    assert update.A.dtype == torch.float32


def test_files_are_in_the_order_of_the_network(lora):
    names = list(SafetensorsFile(lora / "adapter_model.safetensors").tensors)
    assert names[0] == "base_model.model.transformer.h.0.attn.q_proj.lora_A.weight"


@pytest.mark.parametrize("labels", ["[", "7", '["하나"]', '["하나", 2]'])
def test_labels_that_are_not_the_names_of_the_outputs_are_refused(labels, model, base, tmp_path):
    trained_lora(model, LoRAConfig())
    attach_head(model, 2)
    write_adapter(tmp_path / "a", model, base)
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "labels": labels})
    with pytest.raises(InputRefusedError, match="labels in its header is .* a list of 2 names"):
        read_adapter(tmp_path / "a", CONFIG)
    save_file(load_file(path), path, metadata={"format": "pt"})  # as peft writes it
    assert read_adapter(tmp_path / "a", CONFIG).head.labels == ("LABEL_0", "LABEL_1")


def test_the_second_of_two_heads_is_the_one_that_is_refused(base, prompt, tmp_path):
    headed = KoGPT(CONFIG)
    attach_prompt(headed, PromptConfig(3))
    attach_head(headed, 2)
    write_adapter(tmp_path / "second", headed, base)
    with pytest.raises(InputRefusedError, match="second: has a head, and so has .*/a$"):
        load_adapters(KoGPT(CONFIG), [prompt, tmp_path / "second"])
