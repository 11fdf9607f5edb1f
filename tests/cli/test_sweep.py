"""The sweep: variants of a shape on the same tokens, compared seed by seed."""

import argparse
import json
import sys
from types import SimpleNamespace

import pytest

from kogpt.errors import InputRefusedError, KoGPTError, UsageError
from kogpt.training.state import TrainingState
from tests.scripts import SCRIPTS, run_script

sys.path.insert(0, str(SCRIPTS))
import sweep  # noqa: E402

SHAPE = {
    "model_type": "gptj",
    **{"vocab_size": 8000, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2},
    "rotary_dim": 4,
}


def test_variants_are_trained_on_the_same_tokens_and_told_apart(tmp_path):
    rows = "".join(f"{i}번 영화는 정말 재미있다\n" for i in range(200))
    (tmp_path / "texts.txt").write_text(rows, encoding="utf-8")
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE))
    command = ["sweep.py", tmp_path / "texts.txt", tmp_path / "work"]
    command += ["--shape", tmp_path / "shape.json", "--seeds", "0", "--tokens", "256"]
    command += ["--batch-size", "4", "--sequence-length", "16", "--validations", "2"]
    command += ["--documents", "2", "--device", "cpu", "--variant", "plain", "--variant"]
    command += ["narrow=tests/model/swaps.py:WithSwiGLU,n_inner=8"]
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| plain", "| narrow"]
    assert (tmp_path / "work" / "sweep.png").stat().st_size > 10_000
    logs = [(tmp_path / "work" / f"{name}-0" / "log.jsonl") for name in ("plain", "narrow")]
    first, second = ([json.loads(line) for line in log.read_text().splitlines()] for log in logs)
    assert [entry["tokens"] for entry in first] == [entry["tokens"] for entry in second]
    assert first[-1]["tokens"] == 256 and first != second
    again = run_script(*command, "--table")
    assert again.stdout == done.stdout and not again.stderr
    other = run_script(*command, "--documents", "1", "--table")
    assert other.returncode == 3
    assert "plain-0: validation_documents was 2, not 1" in other.stderr


def test_runs_of_other_settings_or_another_shape_are_not_compared(tmp_path):
    variant = sweep.Variant.parse("wide,n_inner=8")
    given = {"work": tmp_path, "shape": "nano", "tokens": 256.0, "batch_size": 4}
    given |= {"sequence_length": 16, "learning_rate": 0.1, "documents": 2}
    args = argparse.Namespace(**given)
    folder = tmp_path / "wide-0" / "step-00000004"
    folder.mkdir(parents=True)
    shape = {**sweep.shape_of(variant, args), "eos_token_id": 77}  # of another tokenizer
    (folder / "config.json").write_text(json.dumps(shape))
    state = TrainingState(4, 256, sweep.settings_of(0, args), "")
    (folder / "training.json").write_bytes(state.to_json())
    sweep.refuse_other_settings(variant, 0, args)
    for name, value, told in (
        ("tokens", 128.0, "steps was 4, not 2"),
        ("batch_size", 2, "steps was 4, not 8"),
        ("sequence_length", 8, "steps was 4, not 8"),
        ("learning_rate", 0.2, "learning_rate was 0.1, not 0.2"),
        ("documents", 3, "validation_documents was 2, not 3"),
    ):
        other = argparse.Namespace(**{**given, name: value})
        with pytest.raises(InputRefusedError, match=f"wide-0: {told}"):
            sweep.refuse_other_settings(variant, 0, other)
    other = sweep.Variant.parse("wide=tests/model/swaps.py:WithSwiGLU,n_inner=8")
    told = "wide-0: architecture was None, not 'tests/model/swaps.py:WithSwiGLU'"
    with pytest.raises(InputRefusedError, match=told):
        sweep.refuse_other_settings(other, 0, args)
    plain = sweep.Variant.parse("wide")
    with pytest.raises(InputRefusedError, match="wide-0: n_inner was 8, not None"):
        sweep.refuse_other_settings(plain, 0, args)
    (tmp_path / "wide-0" / "log.jsonl").write_text('{"step": 4, "tokens": 256}\n')
    assert sweep.read_curve(variant, 1, args) == {}


def test_a_run_that_fails_ends_the_sweep(tmp_path, monkeypatch):
    variant = sweep.Variant.parse("plain")
    given = {"data": tmp_path, "work": tmp_path, "shape": "nano", "tokenizer": tmp_path}
    given |= {"tokens": 256.0, "batch_size": 4, "sequence_length": 16, "learning_rate": 0.1}
    args = argparse.Namespace(**given, documents=2, validations=2, device=None)
    ended = SimpleNamespace(returncode=3)
    monkeypatch.setattr(sweep.subprocess, "run", lambda command: ended)
    with pytest.raises(KoGPTError, match="variant plain, seed 0: kogpt train ended with 3"):
        sweep.run(variant, 0, args)


def test_names_are_drawn_as_they_are(tmp_path):
    curve = {10: 3.0, 20: 2.0}
    sweep.draw({"b$\\frac$": {0: curve}, "한국어": {0: curve}}, tmp_path / "a.png", "$x$, $\\frac$")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_no_two_variants_share_a_folder(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", "sweep.py data work --variant a --variant a=b.py:C".split())
    with pytest.raises(SystemExit):
        sweep.parse_arguments()
    assert "argument --variant: 'a' is there twice" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", "sweep.py data work --variant a --seeds 0 1 0".split())
    with pytest.raises(SystemExit):
        sweep.parse_arguments()
    assert "argument --seeds: one is there twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--tokens nan", "--tokens inf", "--batch-size 0", "--validations 0"]
)
def test_numbers_that_make_no_run_are_refused(monkeypatch, option):
    monkeypatch.setattr(sys, "argv", f"sweep.py data work --variant a {option}".split())
    name, value = option.split()
    with pytest.raises(UsageError, match=f"argument {name}: must be at least 1, is {value}"):
        sweep.parse_arguments()


def test_the_table_compares_seed_by_seed():
    plain = {0: {10: 3.0, 20: 2.0}, 1: {10: 3.0, 20: 2.2}}
    other = {0: {10: 3.0, 20: 1.9}, 1: {10: 3.0, 20: 2.08}}
    lines = list(
        sweep.table(
            {"plain": plain, "other": other, "absent": {0: {}}},
            dict.fromkeys(("plain", "other", "absent"), 1234),
        )
    )
    assert lines[2] == "| plain | 1,234 | 2.1000 ± 0.1414 | 2.0000 2.2000 |  |"
    # 0.10 and 0.12 less: a mean of 0.11, and 0.0141 / sqrt(2) for its error.
    assert lines[3] == "| other | 1,234 | 1.9900 ± 0.1273 | 1.9000 2.0800 | 0.1100 ± 0.0100 |"
    assert lines[4] == "| absent | 1,234 | not yet run | | |"


def test_a_variant_is_read_from_its_text():
    variant = sweep.Variant.parse("SwiGLU=a/b.py:C,n_inner=683,rotary_dim=0")
    assert variant == sweep.Variant("SwiGLU", "a/b.py:C", {"n_inner": 683, "rotary_dim": 0})
    assert sweep.Variant.parse("plain") == sweep.Variant("plain", None, {})
    with pytest.raises(argparse.ArgumentTypeError, match="no FIELD=NUMBER"):
        sweep.Variant.parse("x,n_inner=wide")
    for name in ("a/b", "", "..", "_a", "a|b"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no name of a folder"):
            sweep.Variant.parse(f"{name}=a.py:C")


def test_a_field_that_there_is_not_ends_a_sweep_before_it_begins(tmp_path):
    variant = sweep.Variant.parse("typo,n_iner=5")
    args = argparse.Namespace(shape="nano", work=tmp_path)
    with pytest.raises(InputRefusedError, match="variant typo: KoGPTConfig has no field 'n_iner'"):
        sweep.write_shape(variant, args)
    assert not list(tmp_path.iterdir())
    sweep.write_shape(sweep.Variant.parse("wide,n_inner=5"), args)
    assert json.loads((tmp_path / "wide.json").read_text())["n_inner"] == 5


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"batch_size": 8}, "batch_size was 8, not 4"),
        ({"sequence_length": 32}, "sequence_length was 32, not 16"),
        ({"seed": 1}, "seed was 1, not 0"),
        ({"warmup_steps": 3}, "warmup_steps was 3, not 0"),
    ],
)
def test_each_setting_of_a_run_is_compared_and_not_only_what_follows_from_it(
    tmp_path, changed, told
):
    """A batch twice as large, of sequences half as long, takes as many steps."""
    variant = sweep.Variant.parse("plain")
    given = {"work": tmp_path, "shape": "nano", "tokens": 256.0, "batch_size": 4}
    given |= {"sequence_length": 16, "learning_rate": 0.1, "documents": 2}
    args = argparse.Namespace(**given)
    folder = tmp_path / "plain-0" / "step-00000004"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(sweep.shape_of(variant, args)))
    state = TrainingState(4, 256, sweep.settings_of(0, args) | changed, "")
    (folder / "training.json").write_bytes(state.to_json())
    with pytest.raises(InputRefusedError, match=f"plain-0: {told}"):
        sweep.refuse_other_settings(variant, 0, args)


OWN = """
from dataclasses import dataclass
from kogpt.model import KoGPT, KoGPTConfig

@dataclass(frozen=True)
class OwnConfig(KoGPTConfig):
    window: int = 4

class Own(KoGPT):
    config_class = OwnConfig
"""


def test_a_field_of_a_class_of_ones_own_is_compared(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE))
    given = {"work": tmp_path, "shape": str(tmp_path / "shape.json"), "tokens": 256.0}
    given |= {"batch_size": 4, "sequence_length": 16, "learning_rate": 0.1, "documents": 2}
    args = argparse.Namespace(**given)
    variant, other = (
        sweep.Variant.parse(f"own={tmp_path}/own.py:Own,window={window}") for window in (8, 4)
    )
    folder = tmp_path / "own-0" / "step-00000004"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(sweep.shape_of(variant, args)))
    settings = sweep.settings_of(0, args) | {"architecture": variant.architecture}
    (folder / "training.json").write_bytes(TrainingState(4, 256, settings, "").to_json())
    sweep.refuse_other_settings(variant, 0, args)
    with pytest.raises(InputRefusedError, match="own-0: window was 8, not 4"):
        sweep.refuse_other_settings(other, 0, args)
