"""What `kogpt diff` says of two models is what holds when one is loaded as the other."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kogpt.architecture import load_architecture
from kogpt.box import BOX
from kogpt.checkpoint import ConversionOptions, convert
from kogpt.checkpoint.writer import write_checkpoint
from kogpt.cli import main
from kogpt.diagnostics.diff import compare, find_model
from kogpt.errors import InputRefusedError
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.model.variants import PRESETS, GPTNeoXConfig
from tests.checkpoint import tiny
from tests.model import swaps, test_swaps
from tests.model.test_swaps import CONFIG, SWAPS, Window, WindowConfig

SWAPS_FILE = Path(swaps.__file__)


def write(folder: Path, config=tiny.CONFIG) -> Path:
    write_checkpoint(folder, config, KoGPT(config).state_dict())
    return folder


def test_a_model_differs_from_itself_in_nothing(tmp_path):
    found = compare(find_model(write(tmp_path / "a")), find_model(write(tmp_path / "b")))
    assert found.fits and found.obstacle is None
    assert not (found.settings or found.only_first or found.only_second or found.reshaped)
    assert str(found).endswith("a checkpoint of one fits the other")


@pytest.mark.parametrize("name", SWAPS)
def test_it_says_of_every_swap_whether_a_checkpoint_fits(name, tmp_path):
    model_class, _, message = SWAPS[name]
    folder = write(tmp_path / "plain", CONFIG)
    found = compare(find_model(folder), find_model(folder / "config.json", model_class))
    assert found.fits == (message is None)
    if found.fits:
        assert model_class.from_pretrained(folder)
        assert f"classes KoGPT and {model_class.__name__}" in str(found)
    else:
        with pytest.raises(InputRefusedError):
            model_class.from_pretrained(folder)


def test_settings_that_change_the_function_are_told_where_shapes_do_not(tmp_path):
    changed = dataclasses.replace(tiny.CONFIG, rotary_dim=8, attn_pdrop=0.3)
    first, second = write(tmp_path / "a"), write(tmp_path / "b", changed)
    found = compare(find_model(first), find_model(second))
    assert found.settings == {"rotary_dim": (4, 8), "attn_pdrop": (0.1, 0.3)}
    assert found.fits and found.obstacle == "rotary_dim"


def test_settings_of_training_and_of_the_tokenizer_do_not_make_another_function(tmp_path):
    others = {"attn_pdrop": 0.3, "embd_pdrop": 0.3, "resid_pdrop": 0.3, "initializer_range": 0.3}
    ids = {"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 7}
    changed = dataclasses.replace(tiny.CONFIG, **others, **ids)
    found = compare(find_model(write(tmp_path / "a")), find_model(write(tmp_path / "b", changed)))
    assert found.settings.keys() == {*others, *ids}
    assert found.fits and found.obstacle is None


def test_what_is_alike_in_several_layers_is_one_line():
    found = compare(find_model("kogpt-6b"), find_model("polyglot-ko-5.8b"))
    text = str(found)
    assert "+ transformer.h.{0-27}.ln_2.bias  4096" in text.splitlines()
    assert "~ lm_head.weight  64512 x 4096 -> 30080 x 4096" in text.splitlines()
    assert found.parameters == (6_166_502_400, 5_885_059_072)
    shorter = compare(find_model("kogpt-j-base"), find_model("kogpt-j-base-24L"))
    assert "+ transformer.h.{12-23}.mlp.fc_in.bias  3072" in str(shorter).splitlines()
    assert shorter.obstacle == "only the second has transformer.h.12.ln_1.weight"
    assert "architectures" not in found.settings  # the row of classes says it


def test_the_command_reads_presets_files_folders_and_own_classes(tmp_path, capsys):
    folder = write(tmp_path / "model")
    tiny.write_config(tmp_path / "config")
    assert main(["diff", str(folder), str(tmp_path / "config" / "config.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True
    own = ["--architecture", f"{SWAPS_FILE}:WithRMSNorm"]
    assert main(["diff", "nano", "nano", *own]) == 0
    said = capsys.readouterr().out
    assert "- transformer.h.{0-5}.ln_1.bias  256" in said and "does not fit" in said


def test_a_folder_goes_before_a_preset_of_its_name(tmp_path, monkeypatch):
    write(tmp_path / "nano")
    monkeypatch.chdir(tmp_path)
    assert find_model("nano").parameters == tiny.CONFIG.num_parameters
    (tmp_path / "nano" / "config.json").unlink()
    assert find_model("nano").parameters == PRESETS["nano"].num_parameters


def test_what_cannot_be_read_is_refused_by_name(tmp_path, capsys):
    assert main(["diff", "nano", str(tmp_path / "none")]) == 3
    assert f"{tmp_path / 'none'}: no such file or folder" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_what_its_config_says_is_refused(tmp_path):
    folder = write(tmp_path / "a")
    longer = dataclasses.replace(tiny.CONFIG, n_layer=tiny.CONFIG.n_layer + 1)
    (folder / "config.json").write_text(json.dumps(longer.to_dict()))
    with pytest.raises(InputRefusedError, match=str(folder)):
        find_model(folder)


def test_the_obstacle_is_the_first_in_the_order_of_the_network(tmp_path):
    shape = {"vocab_size": 88, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
    folders = tmp_path / "a", tmp_path / "b"
    for folder, config in zip(
        folders, (GPTNeoXConfig(**shape), KoGPTConfig(**shape, n_inner=72)), strict=True
    ):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
    found = compare(*(find_model(folder / "config.json") for folder in folders))
    assert found.obstacle == "only the first has transformer.h.0.attn.q_proj.bias"


def test_what_none_stands_for_may_be_spelled_out(tmp_path):
    plain = dataclasses.replace(tiny.CONFIG, n_inner=None, rotary_dim=None)
    spelled = dataclasses.replace(plain, n_inner=plain.inner_dim, rotary_dim=plain.head_dim)
    found = compare(
        find_model(write(tmp_path / "a", plain)), find_model(write(tmp_path / "b", spelled))
    )
    assert found.fits and found.obstacle is None and not found.settings


def test_classes_of_one_name_are_told_apart(tmp_path):
    source = tmp_path / "mine.py"
    source.write_text("import kogpt.model\nclass KoGPT(kogpt.model.KoGPT):\n    pass\n")
    own = load_architecture(f"{source}:KoGPT")
    folder = write(tmp_path / "a")
    found = compare(find_model(folder), find_model(folder, own))
    assert found.obstacle == f"classes kogpt.model.transformer.KoGPT and {own.__module__}.KoGPT"
    assert own.__module__.startswith("mine_")


def test_how_checkpoints_keep_their_matrices_is_told(tmp_path):
    convert(BOX, tmp_path / "int8", ConversionOptions(quantize="int8"))
    told = str(compare(find_model(BOX), find_model(tmp_path / "int8"))).splitlines()
    assert [" ".join(line.split()) for line in told if line.startswith("stored")] == [
        "stored float16 int8 per row"
    ]
    assert "stored" not in str(compare(find_model("nano"), find_model(tmp_path / "int8")))


def test_a_field_of_a_class_of_ones_own_is_read_from_a_folder_and_from_a_file(tmp_path):
    for name, window in (("a", 7), ("b", 9)):
        config = WindowConfig(**{**vars(CONFIG), "window": window})
        test_swaps.write(test_swaps.filled(Window, config), tmp_path / name)
    for place in (".", "config.json"):
        found = compare(*(find_model(tmp_path / name / place, Window) for name in "ab"))
        assert found.settings == {"window": (7, 9)}


def test_a_preset_may_be_named_by_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model(Path("nano")).parameters == PRESETS["nano"].num_parameters


def test_shapes_are_had_without_what_torch_imports_to_draw_weights():
    code = (
        "import sys; from kogpt.diagnostics.diff import find_model; find_model('nano');"
        " sys.exit('sympy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=SWAPS_FILE.parents[2], check=True)
