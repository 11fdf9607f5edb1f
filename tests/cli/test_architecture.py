"""A class of one's own from the command line: trained, resumed, finetuned, used."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kogpt
from kogpt.adapters.files import WEIGHTS_NAME as ADAPTER
from kogpt.box import BOX
from kogpt.cli import main
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.parallel import Parallel
from kogpt.training import TrainingConfig
from kogpt.training.model import load_start

SOURCE = """
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from kogpt.model import Block, KoGPT, KoGPTConfig


class RMSNormBlock(Block):
    norm_class = nn.RMSNorm


class RMS(KoGPT):
    block_class = RMSNormBlock


@dataclass(frozen=True)
class OwnConfig(KoGPTConfig):
    model_type: ClassVar[str] = "own"
    strength: float = 0.5


class Own(RMS):
    config_class = OwnConfig
"""
CONFIG = """{"model_type": "gptj", "vocab_size": 8000, "n_positions": 32, "n_embd": 16,
 "n_layer": 2, "n_head": 2, "rotary_dim": 4}"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "shape.json").write_text(CONFIG)
    rows = "".join(f"{i}번 영화는 정말 재미있다\n" for i in range(60))
    (tmp_path / "texts.txt").write_text(rows, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*further: str) -> int:
    command = ["train", "texts.txt", "--config", "shape.json", "--tokenizer", str(BOX)]
    command += ["--batch-size", "2", "--validation-documents", "4", "--no-curve", "--out", "run"]
    return main([*command, *further])


@pytest.mark.parametrize("name", ["RMS", "Own"])
def test_a_run_of_an_own_class_leaves_what_that_class_alone_opens(place, name, capsys):
    own = ["--architecture", f"mine.py:{name}"]
    assert train("--steps", "3", *own) == 0
    (folder,) = (place / "run").glob("step-*3")
    assert main(["generate", "--model", str(folder), *own, "3번", "--max-new-tokens", "4"]) == 0
    capsys.readouterr()
    assert main(["generate", "--model", str(folder), "3번"]) == 3
    said = capsys.readouterr().err
    expected = {"RMS": "transformer.h.0.ln_1.bias is missing", "Own": "model_type is 'own'"}
    assert expected[name] in said and said.count("\n") == 1
    assert train("--steps", "5", "--resume", *own) == 0
    model, _ = kogpt.load(folder, model_class=kogpt.architecture.load_architecture(own[1]))
    assert type(model).__name__ == name


def test_it_is_finetuned_with_an_adapter_that_it_takes_back(place, capsys):
    own = ["--architecture", "mine.py:RMS"]
    assert train("--steps", "2", *own) == 0
    (folder,) = (place / "run").glob("step-*2")
    (place / "rows.jsonl").write_text('{"prompt": "영화는", "completion": " 좋다"}\n' * 9)
    command = ["finetune", "--model", str(folder), *own, "--data", "rows.jsonl", "--steps", "2"]
    command += ["--validation-rows", "2", "--batch-size", "2", "--no-curve"]
    assert main([*command, "--method", "lora", "--output", "lora"]) == 0
    use = ["generate", "--model", str(folder), *own, "--adapter", "lora", "영화는"]
    assert main([*use, "--max-new-tokens", "3"]) == 0
    assert main([*command, "--method", "full", "--output", "full"]) == 0
    assert main(["generate", "--model", "full", *own, "영화는", "--max-new-tokens", "3"]) == 0


@pytest.mark.parametrize("where", ["RMS", "mine.py", "mine.py:"])
def test_a_class_is_named_with_its_file(place, where, capsys):
    assert main(["inspect", "--architecture", where]) == 2
    told = f"kogpt: argument --architecture: is {where}, it must be of the form FILE.py:CLASS\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere.py:RMS", "no such file"),
        ("mine.py:Nobody", "'Nobody' is no subclass of KoGPT"),
        ("mine.py:RMSNormBlock", "'RMSNormBlock' is no subclass of KoGPT"),
        ("broken.py:RMS", "SyntaxError"),
        ("lacking.py:RMS", "No module named 'nonesuch'"),
        ("failing.py:RMS", "failing.py: ZeroDivisionError"),
        ("passed_over.py:M", "M.forward would be passed over"),
        ("plain.py:M", "C has fields that would not be read: write @dataclass(frozen=True)"),
        ("made.py:M", "M.block_class is no class: blocks that differ by layer are made in the"),
        ("drawing.py:M", "M.init_weights must take a generator"),
    ],
)
def test_what_is_no_architecture_is_refused_in_one_line(place, where, message, capsys):
    (place / "broken.py").write_text("class RMS(\n")
    (place / "lacking.py").write_text("import nonesuch\n")
    (place / "failing.py").write_text("1 / 0\n")
    (place / "passed_over.py").write_text(
        "from kogpt.model import KoGPT\nclass M(KoGPT):\n    def forward(self, *_): pass\n"
    )
    (place / "plain.py").write_text(
        "from typing import ClassVar\n"
        "from kogpt.model import KoGPT, KoGPTConfig\n"
        "class C(KoGPTConfig):\n    model_type: ClassVar[str] = 'c'\n    extra: int = 4\n"
        "class M(KoGPT):\n    config_class = C\n"
    )
    (place / "drawing.py").write_text(
        "from kogpt.model import KoGPT\nclass M(KoGPT):\n    def init_weights(self): pass\n"
    )
    (place / "made.py").write_text(
        "from kogpt.model import Block, KoGPT\n"
        "class M(KoGPT):\n    block_class = lambda config, layer: Block(config, layer)\n"
    )
    assert main(["generate", "--architecture", where, "영화"]) == 3
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


DRAWN = """
from functools import partial

import torch
from torch import nn

from kogpt.model import MLP, Block, KoGPT


class Gained(MLP):
    def __init__(self, config):
        super().__init__(config)
        self.gain = nn.Parameter(torch.randn(config.n_embd))

    def forward(self, x):
        return super().forward(x) * self.gain


class GainedBlock(Block):
    mlp_class = Gained
    norm_class = partial(nn.LayerNorm, bias=False)


class Drawn(KoGPT):
    block_class = GainedBlock

    def __init__(self, config):
        super().__init__(config)
        assert type(self) is Drawn
        self.more = nn.Linear(4, 4)

    def init_weights(self, generator=None):
        super().init_weights(generator)
        self.more.bias.fill_(0.5)
        for block in self.transformer.h:
            nn.init.orthogonal_(block.mlp.fc_in.weight)  # by the global generator
            block.mlp.gain.mul_(1e-3)
"""


def test_new_weights_are_drawn_once_and_by_the_seed(place):
    (place / "drawn.py").write_text(DRAWN)
    found = []
    for seed in (1, 1, 2):
        config = TrainingConfig(
            data=(place / "texts.txt",),
            out=place / "run",
            model="shape.json",
            tokenizer=BOX,
            architecture="drawn.py:Drawn",
            seed=seed,
        )
        torch.rand(3)  # whatever else was drawn
        model, _ = load_start(config, None, Parallel())
        assert (
            type(model).__name__ == "Drawn" and type(model).init_weights is not KoGPT.init_weights
        )
        found.append(model.state_dict())
    assert all(found[0][name].equal(found[1][name]) for name in found[0])
    for name in ("transformer.h.0.mlp.fc_in.weight", "transformer.h.0.mlp.gain"):
        assert not found[0][name].equal(found[2][name])
    gains = torch.cat([found[0][f"transformer.h.{layer}.mlp.gain"] for layer in range(2)])
    assert 3e-4 < gains.std() < 3e-3


LOST = """
from dataclasses import dataclass
from enum import Enum

from kogpt.model import KoGPT, KoGPTConfig


class Act(Enum):
    A = 1


@dataclass(frozen=True)
class Window:
    size: int = 4


@dataclass(frozen=True)
class OwnConfig(KoGPTConfig):
    field: {kind} = {value}


class Own(KoGPT):
    config_class = OwnConfig
"""


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        ("Act", "Act.A", "OwnConfig: Object of type Act is not JSON serializable"),
        ("frozenset", "frozenset((1,))", "OwnConfig: Object of type frozenset is not JSON"),
        ("Window", "Window()", "field is an object: fields are numbers, texts and tuples"),
        ("bool", "True", None),
    ],
)
def test_a_field_that_no_file_gives_back_is_refused_before_training(
    place, kind, value, told, capsys
):
    (place / "lost.py").write_text(LOST.format(kind=kind, value=value))
    code = train("--steps", "1", "--architecture", "lost.py:Own")
    said = capsys.readouterr().err
    assert (code, told is None or told in said) == (3 if told else 0, True)
    assert (place / "run").exists() == (told is None)


def test_checkpoints_of_a_kind_of_ones_own_are_inspected_and_compared(place, capsys):
    own = ["--architecture", "mine.py:Own"]
    (place / "shape.json").write_text(CONFIG.replace('"gptj"', '"own", "strength": 2.0'))
    assert train("--steps", "1", *own) == 0
    (folder,) = (place / "run").glob("step-*1")
    assert main(["inspect", str(folder), *own]) == 0
    told = json.loads((folder / "config.json").read_text())
    (place / "other.json").write_text(json.dumps({**told, "strength": 0.25}))
    capsys.readouterr()
    assert main(["diff", "other.json", str(folder), *own, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == {"strength": [0.25, 2.0]} and found["classes"] == ["Own", "Own"]
    assert main(["diff", "other.json", "nano", "--architecture", "mine.py:RMS"]) == 3
    assert "model_type is 'own'" in capsys.readouterr().err


OTHERS = """
from __future__ import annotations

import torch
from dataclasses import dataclass
from torch import nn

from kogpt.model import MLP, Block, KoGPT, KoGPTConfig


@dataclass(frozen=True)
class WideConfig(KoGPTConfig):
    extra: int = 4


class Gain(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.g = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x):
        return torch.tanh(x) * self.g


def with_mlp(prepare):
    class Prepared(MLP):
        def __init__(self, config):
            super().__init__(config)
            prepare(self, config)

    class Other(Block):
        mlp_class = Prepared

    return Other


class Wide(KoGPT):
    config_class = WideConfig
    block_class = with_mlp(lambda mlp, config: mlp.register_parameter(
        "more", nn.Parameter(torch.randn(config.extra))))


class Scalar(KoGPT):
    block_class = with_mlp(lambda mlp, config: mlp.register_parameter(
        "gate", nn.Parameter(torch.tensor(1.0))))


class Whole(KoGPT):
    block_class = with_mlp(lambda mlp, config: mlp.register_buffer("order", torch.arange(3)))


class Derived(KoGPT):
    block_class = with_mlp(
        lambda mlp, config: mlp.register_buffer("slopes", torch.ones(3), persistent=False))


class Experts(KoGPT):
    block_class = with_mlp(lambda mlp, config: mlp.register_module(
        "h", nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])))


class GainBlock(Block):
    norm_class = Gain


class Gained(KoGPT):
    block_class = GainBlock


class Blind(nn.Module):
    def __init__(self, *settings):
        super().__init__()

    def forward(self, x, *others):
        return x


class BlindBlock(Block):
    attention_class = Blind


class Sightless(KoGPT):
    block_class = BlindBlock
"""


@pytest.fixture
def others(place: Path) -> Path:
    (place / "others.py").write_text(OTHERS)
    return place


def own(name: str) -> list[str]:
    return ["--architecture", f"others.py:{name}"]


def load_run(place: Path, name: str, steps: int = 1) -> kogpt.KoGPT:
    folder = place / "run" / f"step-{steps:08}"
    own_class = kogpt.architecture.load_architecture(f"others.py:{name}")
    return kogpt.load_model(folder, model_class=own_class)


def test_a_field_of_ones_own_is_read_from_the_config_file(others, capsys):
    (others / "shape.json").write_text(CONFIG[:-1] + ', "extra": 7}')
    assert main(["diff", "nano", "shape.json", *own("Wide"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["extra"] == [None, 7]
    assert train("--steps", "1", *own("Wide")) == 0
    model = load_run(others, "Wide")
    assert model.config.extra == 7 and model.transformer.h[0].mlp.more.shape == (7,)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"{count:,} parameters" in capsys.readouterr().err


def test_the_seed_is_that_of_parameters_of_ones_own_too(others):
    found = []
    for seed in ("1", "1", "2"):
        assert train("--steps", "1", "--seed", seed, *own("Wide")) == 0
        found.append(load_run(others, "Wide").transformer.h[0].mlp.more)
        shutil.rmtree("run")
    assert found[0].equal(found[1]) and not found[0].equal(found[2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Scalar", "transformer.h.0.mlp.gate is a scalar: give it the shape (1,) to be saved"),
        ("Whole", "transformer.h.0.mlp.order is int64: only floats are saved"),
        ("Derived", "transformer.h.0.mlp.slopes is a buffer that is not saved: make it"),
    ],
)
def test_what_no_checkpoint_could_give_back_is_refused_before_training(
    others, name, message, capsys
):
    assert train("--steps", "1", *own(name)) == 3
    assert message in capsys.readouterr().err
    assert not list((others / "run").glob("step-*"))


def test_a_norm_of_ones_own_begins_as_it_was_made(others):
    assert train("--steps", "1", *own("Gained")) == 0
    assert load_run(others, "Gained").transformer.ln_f.g.tolist() == pytest.approx(
        [0.5] * 16, abs=0.01
    )


def test_a_config_of_another_network_is_not_taken_for_ones_own(others, capsys):
    (others / "shape.json").write_text(CONFIG.replace("gptj", "gpt2"))
    assert train("--steps", "1", *own("Gained")) == 3
    assert "model_type is 'gpt2', this model's is 'gptj'" in capsys.readouterr().err


def test_layers_within_a_layer_are_told_apart(others, capsys):
    assert main(["diff", "nano", "shape.json", *own("Experts")]) == 0
    assert "transformer.h.{0-1}.mlp.h.1.weight" in capsys.readouterr().out


def test_a_trained_class_is_inspected_and_traced(others, capsys):
    assert train("--steps", "1", *own("Wide")) == 0
    folder = str(others / "run" / "step-00000001")
    capsys.readouterr()
    assert main(["inspect", folder, *own("Wide"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["extra"] == 4
    assert main(["trace", "영화", "--model", folder, *own("Wide")]) == 0


def test_an_architecture_without_attention_has_no_lens(others, capsys):
    assert train("--steps", "1", *own("Sightless")) == 0
    folder = str(others / "run" / "step-00000001")
    capsys.readouterr()
    assert main(["lens", "영화", "--model", folder, *own("Sightless")]) == 2
    told = capsys.readouterr().err
    assert "BlindBlock has no `attn` with an `attend` to look into" in told


def test_a_file_that_exits_is_refused(others, capsys):
    (others / "exits.py").write_text("import sys\nsys.exit(0)\n")
    assert main(["diff", "nano", "nano", "--architecture", "exits.py:X"]) == 3
    assert "exits.py: SystemExit: 0" in capsys.readouterr().err


BESIDE = """
from kogpt.model import Block

GAIN = {gain}

class MyBlock(Block):
    def forward(self, x, *others):
        return GAIN * super().forward(x, *others)
"""
NET = """
from kogpt.model import KoGPT
from blocks import MyBlock

class Net(KoGPT):
    block_class = MyBlock
"""


def write_net(folder: Path, gain: float) -> str:
    """A class that imports another file beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "blocks.py").write_text(BESIDE.format(gain=gain))
    (folder / "net.py").write_text(NET)
    return f"{folder}/net.py:Net"


def test_files_of_one_name_have_neighbours_of_their_own(place, capsys):
    one, other = (write_net(place / f"v{gain}", gain) for gain in (1, 2))
    assert main(["trace", "영화", "--architecture", one, "--against-architecture", other]) == 0
    assert "part at transformer.h.0" in capsys.readouterr().out
    first, second = map(kogpt.architecture.load_architecture, (one, other))
    assert first.__module__ != second.__module__ and "blocks" not in sys.modules
    shape = KoGPTConfig.from_file("shape.json")
    found = {
        kogpt.architecture.source_fingerprint(where, made(shape))
        for where, made in ((one, first), (other, second))
    }
    assert len(found) == 2
    assert kogpt.architecture.load_architecture(one) is first


LATER = """
from kogpt.model import KoGPT

class Net(KoGPT):
    def __init__(self, config):
        from later.blocks import MyBlock

        Net.block_class = MyBlock
        super().__init__(config)
"""


@pytest.mark.parametrize(
    ("folder", "net"),
    [("elsewhere", NET.replace("blocks", "elsewhere.blocks")), ("later", LATER)],
)
def test_an_edit_of_a_file_from_elsewhere_is_noticed_too(place, monkeypatch, capsys, folder, net):
    """Of another folder, or imported when the class was there already."""
    (place / folder).mkdir()
    (place / folder / "blocks.py").write_text(BESIDE.format(gain=1))
    (place / "models").mkdir()
    (place / "models" / "net.py").write_text(net)
    monkeypatch.syspath_prepend(str(place))
    asked = ["--architecture", "models/net.py:Net"]
    assert train("--steps", "1", *asked) == 0
    assert train("--steps", "2", "--resume", *asked) == 0
    (place / folder / "blocks.py").write_text(BESIDE.format(gain=2))
    capsys.readouterr()
    assert train("--steps", "3", "--resume", *asked) == 3
    assert "models/net.py:Net is not what it was when the run began" in capsys.readouterr().err


def test_a_change_is_traced_against_the_network_as_it_was(place, capsys):
    changed = write_net(place / "changed", 2)
    assert main(["trace", "영화", "--architecture", changed, "--against", str(BOX)]) == 0
    told = capsys.readouterr().out
    assert "(Net, float32)" in told and "(KoGPT, float64) part at transformer.h.0" in told
    assert main(["trace", "영화", "--architecture", changed]) == 0  # a change against itself
    told = capsys.readouterr().out
    assert "agree" in told and "Net" not in told


def test_what_is_not_beside_a_file_keeps_its_name(place, monkeypatch):
    """As where the file lies beside the package itself, or beside an environment."""
    library = place / "env" / "site-packages"
    library.mkdir(parents=True)
    (library / "einstein.py").write_text("E = 1\n")
    (place / "package").mkdir()
    (place / "package" / "__init__.py").write_text("")
    (place / "package" / "inner.py").write_text("")
    monkeypatch.syspath_prepend(str(library))
    (place / "far.py").write_text(SOURCE + "import einstein\nimport package.inner\n")
    monkeypatch.setattr(kogpt, "__path__", [*kogpt.__path__, str(place)])
    (place / "late.py").write_text("")
    (place / "far.py").write_text((place / "far.py").read_text() + "import kogpt.late\n")
    kogpt.architecture.load_architecture("far.py:RMS")
    assert {"einstein", "kogpt.late"} <= set(sys.modules)
    assert not {"package", "package.inner"} & set(sys.modules)
    for name in ("einstein", "kogpt.late"):
        del sys.modules[name]


def test_a_class_is_compiled_with_what_its_files_define(place):
    own = kogpt.architecture.load_architecture(write_net(place, 2))
    shape = kogpt.KoGPTConfig(
        vocab_size=40, n_positions=8, n_embd=16, n_layer=2, n_head=2, rotary_dim=4
    )
    model, ids = own(shape).eval(), torch.arange(6)[None]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), model(ids))


def test_a_run_is_not_resumed_with_a_class_that_was_edited(place, capsys):
    own = ["--architecture", write_net(place, 2)]
    assert train("--steps", "2", *own) == 0
    assert train("--steps", "3", "--resume", *own) == 0
    write_net(place, 3)
    kogpt.architecture._run.cache_clear()
    capsys.readouterr()
    assert train("--steps", "4", "--resume", *own) == 3
    assert "net.py:Net is not what it was when the run began" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_a_network_that_was_edited(place, capsys, monkeypatch):
    assert train("--steps", "2") == 0
    assert train("--steps", "3", "--resume") == 0
    monkeypatch.setattr("kogpt.training.loop.network_fingerprint", lambda: "another")
    capsys.readouterr()
    assert train("--steps", "4", "--resume") == 3
    assert "kogpt/model/ is not what it was when the run began" in capsys.readouterr().err


def test_a_step_that_fails_leaves_a_folder_for_the_next_run(place):
    (place / "wrong.py").write_text(
        SOURCE + "    def logits(self, hidden): return hidden[:, 1000]\n"
    )
    with pytest.raises(IndexError):
        train("--steps", "2", "--architecture", "wrong.py:Own")
    assert train("--steps", "1", "--architecture", "mine.py:Own") == 0
    assert train("--steps", "2", "--architecture", "mine.py:Own") == 3  # here is a run now


def test_lists_of_a_config_are_tuples(place):
    (place / "listed.py").write_text(
        SOURCE.replace("strength: float = 0.5", "windows: tuple[tuple[int, ...], ...] = ((4,),)")
    )
    shape = json.loads(CONFIG) | {"model_type": "own", "windows": [[16, 8], [32]]}
    (place / "shape.json").write_text(json.dumps(shape))
    assert train("--steps", "1", "--architecture", "listed.py:Own") == 0
    own = kogpt.architecture.load_architecture("listed.py:Own")
    model, _ = kogpt.load("run/step-00000001", model_class=own)
    assert model.config.windows == ((16, 8), (32,))


def test_a_changed_checkpoint_is_not_planned_as_what_it_is_not(place, capsys):
    (place / "swiglu.py").write_text(
        "from torch import nn\n"
        "from kogpt.model import MLP, Block, KoGPT\n"
        "class Gated(MLP):\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.fc_gate = nn.Linear(config.n_embd, config.inner_dim)\n"
        "class GatedBlock(Block):\n"
        "    mlp_class = Gated\n"
        "class Net(KoGPT):\n"
        "    block_class = GatedBlock\n"
    )
    assert train("--steps", "1", "--architecture", "swiglu.py:Net") == 0
    capsys.readouterr()
    assert main(["plan", "--model", "run/step-00000001", "--method", "full", "--gpus", "0"]) == 3
    assert "fc_gate.weight is no part of a KoGPT" in capsys.readouterr().err
    plan = ["plan", "--model", "run/step-00000001", "--gpus", "0", "--architecture"]
    weights = []
    for own in ("swiglu.py:Net", "mine.py:RMS"):
        model, method = ("shape.json" if own == "mine.py:RMS" else plan[2]), ["--method", "full"]
        assert main([*plan[:2], model, *plan[3:], own, *method, "--json"]) == 0
        weights.append(json.loads(capsys.readouterr().out)["bytes"]["weights"])
    # A gate of 64 x 16 with its bias in each of two blocks; norms without biases, two and the last.
    assert weights[0] - weights[1] == 4 * (2 * (64 * 16 + 64) + 3 * 16)
    for further, told in (
        (["--method", "qlora"], "not with qlora or --quantize"),
        (["--method", "full", "--quantize", "int8"], "only with --method inference or qlora"),
        (["--method", "full", "--gpus", "2"], "only on one GPU"),
    ):
        assert main([*plan, "swiglu.py:Net", *further]) == 2
        assert told in capsys.readouterr().err


COUNTING = """
import torch

from kogpt.model import MLP, Block, KoGPT


class CountingMLP(MLP):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("passes", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.passes += 1
        return super().forward(x) * (1 + self.passes / 8)


class CountingBlock(Block):
    mlp_class = CountingMLP


class Counting(KoGPT):
    block_class = CountingBlock
"""


@pytest.fixture
def counting(place: Path) -> list[str]:
    """How to finetune a model that has read in training three times, and remembers it."""
    (place / "counting.py").write_text(COUNTING)
    own = ["--architecture", "counting.py:Counting"]
    assert train("--steps", "3", *own) == 0
    rows = "".join(
        f'{{"prompt": "{i}번 영화는", "completion": " {"좋다" if i % 2 else "싫다"}"}}\n'
        for i in range(40)
    )
    (place / "rows.jsonl").write_text(rows)
    command = ["finetune", "--model", "run/step-00000003", *own, "--data", "rows.jsonl"]
    sizes = ["--batch-size", "4", "--validation-rows", "4", "--no-curve", "--no-tensorboard"]
    return [*command, *sizes, "--output", "tuned"]


def passes(path: Path) -> float:
    return load_file(path)["transformer.h.0.mlp.passes"].item()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_finetuned_model_has_the_buffers_that_it_was_measured_with(place, counting, method):
    command = [*counting, "--steps", "4", "--method", method, "--save-every", "2"]
    assert main(command) == 0
    weights = place / "tuned" / ("model-00001-of-00001.safetensors", ADAPTER)[method == "lora"]
    before = weights.read_bytes(), json.loads((place / "tuned" / "results.json").read_text())
    assert main([*command, "--resume"]) == 0  # reads what it saved, measures and writes it again
    again = weights.read_bytes(), json.loads((place / "tuned" / "results.json").read_text())
    assert again[0] == before[0] and again[1]["validation"] == before[1]["validation"]
    if method == "full":
        assert passes(weights) == 3 + 4


def test_the_best_weights_have_the_buffers_of_their_step(place, counting):
    steep = ["--learning-rate", "3", "--gradient-clip", "1000", "--validate-every", "1"]
    assert main([*counting, "--steps", "5", "--method", "full", *steep]) == 0
    step = json.loads((place / "tuned" / "results.json").read_text())["step"]
    assert step < 5
    assert passes(place / "tuned" / "model-00001-of-00001.safetensors") == 3 + step


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("attn_drop", "attn_pdrop"),
        ("layer_norm_eps", "layer_norm_epsilon"),
        ("n_layers", "n_layer"),
    ],
)
def test_what_is_nearly_a_setting_is_refused_and_not_passed_over(place, key, told, capsys):
    (place / "shape.json").write_text(json.dumps({**json.loads(CONFIG), key: 2, "dtype": "x"}))
    assert train("--steps", "1") == 3
    assert capsys.readouterr().err == f"kogpt: shape.json: {key} is no setting, {told} is\n"
    assert not (place / "run").exists()


def test_an_adapter_of_a_class_with_a_name_of_its_own_is_saved(place, capsys):
    own = ["--architecture", "mine.py:Own"]
    assert train("--steps", "1", *own) == 0
    (place / "rows.jsonl").write_text('{"prompt": "영화는", "completion": " 좋다"}\n' * 9)
    command = ["finetune", "--model", "run/step-00000001", *own, "--data", "rows.jsonl"]
    command += ["--validation-rows", "2", "--batch-size", "2", "--no-curve", "--steps", "2"]
    assert main([*command, "--method", "lora", "--output", "lora"]) == 0
    assert (place / "lora" / "adapter_config.json").exists()
