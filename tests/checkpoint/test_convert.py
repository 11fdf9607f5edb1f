"""What a conversion promises: options, reports, resumption, and the check afterwards."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kogpt.checkpoint import (
    ConversionOptions,
    convert,
    inspect,
    load_model,
    open_checkpoint,
    source_hash,
    verify,
    write_checkpoint,
)
from kogpt.checkpoint.names import expand
from kogpt.checkpoint.safetensors_file import encode_header
from kogpt.checkpoint.source_hash import SourceHash
from kogpt.errors import InputRefusedError, KoGPTError, NotEnoughResourcesError
from kogpt.model import KoGPTConfig
from tests.checkpoint.tiny import CONFIG, released_state, tiny_state, write_config, write_released
from tests.shared import shared

convert_module = sys.modules["kogpt.checkpoint.convert"]  # whose function has its name


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_dry_run_writes_nothing_and_tells_names_shapes_sizes_and_needs(tmp_path):
    write_released(tmp_path / "src")
    report = convert(tmp_path / "src", tmp_path / "dst", ConversionOptions(dry_run=True))
    assert os.listdir(tmp_path) == ["src"]
    text = str(report)
    for name, tensor in tiny_state().items():
        assert name in text and "x".join(map(str, tensor.shape)) in text
    assert "disk needed" in text and "memory needed" in text
    values = json.loads(json.dumps(report.to_dict()))
    assert values["nbytes"] == 2 * CONFIG.num_parameters and values["dry_run"]
    assert len(values["tensors"]) == len(tiny_state()) and len(values["ignored"]) == 4


def test_a_conversion_repeated_says_so_and_writes_nothing(tmp_path):
    write_released(tmp_path / "src")
    assert not convert(tmp_path / "src", tmp_path / "dst").already_complete
    before = written(tmp_path / "dst")
    report = convert(tmp_path / "src", tmp_path / "dst")
    assert report.already_complete and "by sizes; `kogpt verify` checks" in str(report)
    assert before == written(tmp_path / "dst")


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """Each file of a folder, and when it was last written; reading may leave its own time."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir()}


@pytest.mark.parametrize(
    "options", [ConversionOptions(dtype="float32"), ConversionOptions(max_shard_size=2000)]
)
def test_another_conversion_to_the_same_name_is_refused(tmp_path, options):
    write_released(tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "dst")
    before = contents(tmp_path / "dst")
    with pytest.raises(InputRefusedError, match="exists already"):
        convert(tmp_path / "src", tmp_path / "dst", options)
    assert contents(tmp_path / "dst") == before
    assert sorted(os.listdir(tmp_path)) == ["dst", "src"]


def test_a_changed_source_is_not_taken_for_the_one_converted_before(tmp_path):
    write_released(tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "dst")
    state = released_state()
    state["lm_head.bias"][0] += 1
    write_released(tmp_path / "src", state)
    with pytest.raises(InputRefusedError, match="exists already"):
        convert(tmp_path / "src", tmp_path / "dst")


@pytest.mark.parametrize(
    "change",
    [
        lambda src, dst: write_config(src, dataclasses.replace(CONFIG, rotary_dim=8)),
        lambda src, dst: (src / "tokenizer.json").write_text("{}"),
        lambda src, dst: (dst / "config.json").unlink(),
        lambda src, dst: (dst / "model-00001-of-00001.safetensors").unlink(),
        lambda src, dst: os.truncate(dst / "model-00001-of-00001.safetensors", 99),
        lambda src, dst: (dst / "manifest.json").write_text("[" * 99_999),
    ],
    ids=["config", "companion", "lost config", "lost weights", "cut weights", "nested manifest"],
)
def test_what_is_not_whole_or_of_other_files_is_not_taken_for_done(tmp_path, change):
    src, dst = write_released(tmp_path / "src"), tmp_path / "dst"
    convert(src, dst)
    change(src, dst)
    with pytest.raises(InputRefusedError, match="exists already"):
        convert(src, dst)


@pytest.mark.parametrize(
    ("change", "options", "resumed"),
    [
        (lambda weights: None, ConversionOptions(), True),
        (lambda weights: os.utime(weights, (1, 1)), ConversionOptions(), False),
        (lambda weights: None, ConversionOptions(allow_nonfinite=("lm_head.*",)), False),
    ],
    ids=["the same", "another time of the source", "other values allowed"],
)
def test_a_rest_is_resumed_by_the_same_conversion_alone(
    change, options, resumed, tmp_path, monkeypatch
):
    def cut(*_, **__):
        raise KeyboardInterrupt

    src, folder = write_released(tmp_path / "src"), tmp_path / ".dst.partial" / "folder"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convert_module, "finish", cut)
        convert(src, tmp_path / "dst")
    before = written(folder)
    change(src / "pytorch_model.bin")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convert_module, "finish", cut)
        convert(src, tmp_path / "dst", options)
    assert before and (written(folder) == before) is resumed


@pytest.mark.parametrize("rest", ["", "{", "\0"])
def test_a_damaged_rest_is_begun_anew(tmp_path, rest):
    src = write_released(tmp_path / "src")
    convert(src, tmp_path / "whole")
    (tmp_path / ".dst.partial").mkdir()
    (tmp_path / ".dst.partial" / "plan.json").write_text(rest)
    convert(src, tmp_path / "dst")
    assert contents(tmp_path / "dst") == contents(tmp_path / "whole")


def test_a_path_need_not_be_utf8_and_a_notice_must(tmp_path):
    src = tmp_path / os.fsdecode(b"s\xff")
    write_checkpoint(src, CONFIG, tiny_state())
    convert(src, tmp_path / "dst")
    verify(tmp_path / "dst")
    file = tmp_path / os.fsdecode(b"m\xff.safetensors")
    next(src.glob("model-*")).rename(file)
    convert(file, tmp_path / "of file", ConversionOptions(config=CONFIG))
    assert list(verify(tmp_path / "of file").files)
    with pytest.raises(ValueError, match="license_notice is .*no text in UTF-8"):
        ConversionOptions(license_notice=os.fsdecode(b"CC\xff"))


def test_the_root_is_no_name_for_a_folder(tmp_path):
    src = write_released(tmp_path / "src")
    with pytest.raises(InputRefusedError, match="/: exists already"):
        convert(src, "/")
    with pytest.raises(InputRefusedError, match="/: exists already"):
        write_checkpoint("/", CONFIG, tiny_state())


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    src = write_released(tmp_path / "src")
    (tmp_path / "dst").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "dst")
    for options in (ConversionOptions(), ConversionOptions(dry_run=True)):
        with pytest.raises(InputRefusedError, match="dst: a mount point; name a folder inside it"):
            convert(src, tmp_path / "dst", options)
    with pytest.raises(InputRefusedError, match="dst: a mount point"):
        write_checkpoint(tmp_path / "dst", CONFIG, tiny_state())
    assert sorted(os.listdir(tmp_path)) == ["dst", "src"]
    convert(src, tmp_path / "dst" / "inside")


@pytest.mark.parametrize("name", ["precious", "plan.json.bak", "Folder"])
@pytest.mark.parametrize("exists", [False, True])
def test_what_others_keep_where_unfinished_work_goes_stays(tmp_path, name, exists):
    src = write_released(tmp_path / "src")
    (tmp_path / ".dst.partial").mkdir()
    (tmp_path / ".dst.partial" / name).write_text("mine")
    if exists:
        (tmp_path / "dst").mkdir()
        (tmp_path / "dst" / "x").touch()
    with pytest.raises(InputRefusedError, match=f"{name}: no part of unfinished work"):
        convert(src, tmp_path / "dst")
    assert contents(tmp_path / ".dst.partial") == {name: b"mine"}


def test_a_dry_run_refuses_what_the_run_would_refuse(tmp_path):
    src, dry = write_released(tmp_path / "src"), ConversionOptions(dry_run=True)
    convert(src, tmp_path / "dst")
    convert(src, tmp_path / "dst", dry)  # it would say that it has been done
    for folder, options in ((tmp_path / "src", {}), (tmp_path / "dst", {"dtype": "float32"})):
        with pytest.raises(InputRefusedError, match="exists already"):
            convert(src, folder, dataclasses.replace(dry, **options))


def test_a_folder_appears_where_the_system_would_make_it_with_the_rights_it_has(tmp_path):
    src = write_released(tmp_path / "src")
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "real" / "out").mkdir(mode=0o700)
    convert(src, tmp_path / "link" / ".." / "out")
    verify(tmp_path / "real" / "out")
    assert (tmp_path / "real" / "out").stat().st_mode & 0o777 == 0o700
    assert sorted(os.listdir(tmp_path)) == ["link", "real", "src"]
    assert sorted(os.listdir(tmp_path / "real")) == ["deep", "out"]


def test_an_empty_notice_is_one(tmp_path):
    src = write_released(tmp_path / "src")
    assert convert(src, tmp_path / "dst", ConversionOptions(license_notice="")).license == ""


def test_a_manifest_of_another_program_says_nothing_of_the_licence(tmp_path):
    src = write_released(tmp_path / "src")
    (src / "manifest.json").write_text('{"name": "an app"}')
    assert convert(src, tmp_path / "dst").license.startswith("not stated here")
    (src / "manifest.json").write_text('{"format": "kogpt-manifest-2"}')
    with pytest.raises(InputRefusedError, match="bad manifest"):
        convert(src, tmp_path / "other")


def test_unknown_tensors_are_left_behind_where_named(tmp_path):
    state = {**released_state(), "transformer.h.0.attn.rope": torch.ones(2), "score": torch.ones(1)}
    write_released(tmp_path / "src", state)
    with pytest.raises(InputRefusedError, match="score"):
        convert(tmp_path / "src", tmp_path / "dst", ConversionOptions(allow_extra=("*.rope",)))
    options = ConversionOptions(allow_extra=("*.rope", "score"))
    report = convert(tmp_path / "src", tmp_path / "dst", options)
    assert report.left_out == ["transformer.h.0.attn.rope", "score"]
    with open_checkpoint(tmp_path / "dst") as reader:
        assert reader.names == list(tiny_state())


def test_nonfinite_weights_pass_only_where_named(tmp_path):
    state = released_state()
    state["lm_head.bias"][:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    write_released(tmp_path / "src", state)
    for allowed in ((), ("lm_head.weight",)):
        with pytest.raises(InputRefusedError, match="src: lm_head.bias holds 1 NaN and 2 infinite"):
            convert(tmp_path / "src", tmp_path / "dst", ConversionOptions(allow_nonfinite=allowed))
        assert os.listdir(tmp_path) == ["src"]
    options = ConversionOptions(allow_nonfinite=("lm_head.*",))
    convert(tmp_path / "src", tmp_path / "dst", options)
    entry = json.loads((tmp_path / "dst/manifest.json").read_text())["tensors"]["lm_head.bias"]
    assert (entry["nan"], entry["inf"]) == (1, 2)


def test_bad_options_are_value_errors():
    for bad in ({"dtype": "int4"}, {"max_shard_size": 0}, {"on_overflow": "ignore"}):
        with pytest.raises(ValueError, match="must be"):
            ConversionOptions(**bad)


def test_tokenizer_files_are_copied_and_licences_noted(tmp_path):
    write_released(tmp_path / "src")
    for name in ("tokenizer.json", "special_tokens_map.json", "chat_template.jinja"):
        (tmp_path / "src" / name).write_text(f'{{"{name}": 1}}')
    (tmp_path / "src" / "training_args.bin").write_bytes(b"\x80\x02 os.system")
    options = ConversionOptions(license_notice="CC0-1.0")
    report = convert(tmp_path / "src", tmp_path / "dst", options)
    assert len(report.copied) == 3
    assert (tmp_path / "dst/tokenizer.json").read_bytes() == b'{"tokenizer.json": 1}'
    assert not (tmp_path / "dst/training_args.bin").exists()
    manifest = json.loads((tmp_path / "dst/manifest.json").read_text())
    from safetensors import safe_open

    shard = next((tmp_path / "dst").glob("model-*.safetensors"))
    with safe_open(shard, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["license"] == manifest["license"] == "CC0-1.0"
    assert metadata["source_sha256"] == manifest["source"]["sha256"]
    sha = subprocess.run(
        ["sha256sum", tmp_path / "src/pytorch_model.bin"], capture_output=True, text=True
    )
    if sha.returncode == 0:
        assert sha.stdout.startswith(manifest["source"]["sha256"])


def test_a_licence_that_lies_beside_the_weights_goes_along(tmp_path):
    write_released(tmp_path / "src")
    (tmp_path / "src" / "LICENSE").write_text("CC0")
    convert(tmp_path / "src", tmp_path / "dst")
    assert (tmp_path / "dst" / "LICENSE").read_text() == "CC0"
    (tmp_path / "dst" / "NOTICE").write_text("of the one who publishes it")
    verify(tmp_path / "dst")
    (tmp_path / "src" / "NOTICE.md").mkdir()
    assert "NOTICE.md" not in convert(tmp_path / "src", tmp_path / "again").copied


def test_a_class_of_tokenizer_goes_along(tmp_path):
    """Others open the tokenizer by it where no file of the tokenizer's names a class."""
    write_released(tmp_path / "src")
    path = tmp_path / "src" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "A"}))
    for src, dst in (("src", "a"), ("a", "b")):
        convert(tmp_path / src, tmp_path / dst)
        assert convert(tmp_path / src, tmp_path / dst).already_complete
        assert json.loads((tmp_path / dst / "config.json").read_text())["tokenizer_class"] == "A"
    convert(tmp_path / "src", tmp_path / "c", ConversionOptions(config=CONFIG))
    assert "tokenizer_class" not in json.loads((tmp_path / "c" / "config.json").read_text())


def test_a_notice_commands_no_terminal(tmp_path):
    notice = "MIT \x1b[2J\x1b]0;x\x07\n한국어도\rkogpt: all fine"
    write_checkpoint(tmp_path / "a", CONFIG, tiny_state(), license_notice=notice)
    report = convert(tmp_path / "a", tmp_path / "b")
    assert report.license == verify(tmp_path / "b").license == notice
    for told in (str(report), str(verify(tmp_path / "b"))):
        assert told.endswith("weights: MIT \\x1b[2J\\x1b]0;x\\x07\n  한국어도\n  kogpt: all fine")


def test_the_licence_that_a_card_names_is_carried(tmp_path):
    src = write_released(tmp_path / "src")
    (src / "README.md").write_text("---\nlanguage: ko\nlicense: cc-by-nc-nd-4.0\n---\n# 모델\n")
    notice = "cc-by-nc-nd-4.0, as README.md of the source names it"
    assert convert(src, tmp_path / "a").license == notice == verify(tmp_path / "a").license
    (src / "README.md").write_text("# A model\n---\nlicense: none of a card\n")
    assert convert(src, tmp_path / "b").license.startswith("not stated here")


def test_the_released_shape_carries_the_released_licence(tmp_path):
    from kogpt.checkpoint.convert import license_of

    assert "CC-BY-NC-ND-4.0" in license_of(tmp_path, KoGPTConfig())
    assert "CC-BY" not in license_of(tmp_path, CONFIG)


# The manifest.


def test_verify_accepts_what_convert_writes(tmp_path):
    write_released(tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "dst", ConversionOptions(max_shard_size=3000))
    report = verify(tmp_path / "dst")
    assert report.tensors == len(tiny_state()) and report.source is not None
    manifest = json.loads((tmp_path / "dst/manifest.json").read_text())
    for name, tensor in tiny_state(dtype=torch.float16).items():
        entry = manifest["tensors"][name]
        assert entry["min"] == tensor.min().item() and entry["max"] == tensor.max().item()
        assert entry["shape"] == list(tensor.shape) and entry["dtype"] == "float16"


def test_verify_notices_every_flipped_bit(tmp_path):
    write_released(tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "dst")
    noticed = 0
    for path in sorted((tmp_path / "dst").iterdir()):
        data = path.read_bytes()
        for at in range(0, len(data), max(1, len(data) // 40)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
            if path.name == "manifest.json":
                noticed += _manifest_bit(tmp_path / "dst")
            else:
                with pytest.raises(InputRefusedError, match=path.name):
                    verify(tmp_path / "dst")
                noticed += 1
        path.write_bytes(data)
    assert noticed > 120
    verify(tmp_path / "dst")


def _manifest_bit(folder: Path) -> bool:
    """The manifest itself has no hash: a changed note in it is no error, anything else is."""
    try:
        verify(folder)
    except InputRefusedError:
        return True
    return False


@pytest.mark.parametrize(
    "damage, word",
    [
        (lambda d: (d / "config.json").unlink(), "config.json"),
        (lambda d: next(d.glob("model-*")).unlink(), "model-00001"),
        (lambda d: (d / "manifest.json").unlink(), "manifest.json"),
        (lambda d: (d / "manifest.json").write_text("{}"), "manifest.json"),
        (lambda d: (d / "manifest.json").write_text("[" * 9999), "manifest.json"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x"), "model.safetensors"),
        (lambda d: (d / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin"),
        (lambda d: (d / "tokenizer.model").write_bytes(b"x"), "tokenizer.model: not in the manif"),
        (lambda d: (d / "adapter_config.json").write_text("{}"), "adapter_config.json: not in the"),
        (lambda d: (d / "chat_template.jinja").write_text(""), "jinja: not in the manifest"),
        (lambda d: set_note(d, license="x\ud800"), "license, which must be text in UTF-8"),
        (lambda d: set_note(d, license="MIT"), "license is 'not .*', the manifest says 'MIT'"),
        (
            lambda d: set_note(d, source={"sha256": "0" * 64}),
            "source_sha256 is '.*', the manifest says '000",
        ),
        (lambda d: set_note(d, source={"sha256": ["x"]}), "source has no sha256"),
        (lambda d: (d / "shard_0").mkdir(), "holds slices of weights"),
        (lambda d: change_manifest(d, "tensors", "ghost", {"file": "none"}), "ghost': its file is"),
        (lambda d: change_manifest(d, "tensors", "ghost", {}), "ghost': its file is"),
        (lambda d: change_manifest(d, "files", "config.json", None), "config.json is missing"),
    ],
)
def test_verify_names_what_is_missing_or_strange(tmp_path, damage, word):
    write_released(tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "dst")
    damage(tmp_path / "dst")
    with pytest.raises(InputRefusedError, match=word):
        verify(tmp_path / "dst")


def set_note(folder: Path, **notes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | notes))


def change_manifest(folder: Path, table: str, name: str, entry: dict | None) -> None:
    """Puts an entry into a table of the manifest, or takes it out."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if entry is None:
        del manifest[table][name]
    else:
        manifest[table][name] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))


# Looking without reading.


@pytest.mark.parametrize("state", [{}, {"transformer.h.0.attn.masked_bias": torch.tensor(-1e9)}])
def test_a_file_without_weights_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "weights.bin")
    with pytest.raises(InputRefusedError, match="weights.bin: holds no weights"):
        inspect(tmp_path / "weights.bin")


def write_hollow(folder: Path, config: KoGPTConfig) -> None:
    """A checkpoint in float16 whose weights are a hole in the file, all zeros."""
    write_config(folder, config)
    header = encode_header([(n, torch.float16, s) for n, s in expand(config).items()], {})
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 2 * config.num_parameters)


def test_inspect_reads_headers_only(tmp_path):
    """The weights are a hole of 12.3 GB in a file: reading them would take long."""
    write_hollow(tmp_path, KoGPTConfig())
    start = time.perf_counter()
    report = inspect(tmp_path)
    assert report.parameters == 6_166_502_400 and report.dtypes == {"float16": 6_166_502_400}
    assert report.memory["float16"] > report.nbytes == 12_333_004_800
    assert "6,166,502,400 parameters in 285 tensors" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["compute_dtype"] == "float32"
    cached = 2 * 28 * 2048 * 4096
    assert report.memory["on a CPU"] == report.nbytes + 4 * cached  # where halves stay halves
    assert "; on a CPU 14.21 GB unless told otherwise, computing in float32" in str(report)
    assert time.perf_counter() - start < 1


# Resources.


def test_a_shortage_of_disk_is_told_before_the_start(tmp_path, monkeypatch):
    write_released(tmp_path / "src")
    nearly_full = SimpleNamespace(f_bavail=1, f_frsize=1000)
    monkeypatch.setattr(os, "statvfs", lambda path: nearly_full)
    with pytest.raises(NotEnoughResourcesError, match="1.06 MB needed, 1.00 kB free") as caught:
        convert(tmp_path / "src", tmp_path / "dst")
    assert caught.value.exit_code == 4
    assert os.listdir(tmp_path) == ["src"]


def test_a_shortage_of_disk_spares_what_can_be_resumed(tmp_path, monkeypatch):
    write_released(tmp_path / "src")
    unfinished = tmp_path / ".dst.partial" / "folder" / "model-00001-of-00001.safetensors"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(bytes(5000))
    nearly_full = SimpleNamespace(f_bavail=1, f_frsize=1000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: nearly_full)
        with pytest.raises(NotEnoughResourcesError):
            convert(tmp_path / "src", tmp_path / "dst")
    assert unfinished.exists()
    convert(tmp_path / "src", tmp_path / "dst")
    assert sorted(os.listdir(tmp_path)) == ["dst", "src"]


def test_what_unfinished_work_holds_counts_as_room(tmp_path, monkeypatch):
    write_released(tmp_path / "src")
    unfinished = tmp_path / ".dst.partial" / "folder" / "model-00001-of-00001.safetensors"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(bytes(1 << 20))
    nearly_full = SimpleNamespace(f_bavail=100, f_frsize=1000)
    monkeypatch.setattr(os, "statvfs", lambda path: nearly_full)
    convert(tmp_path / "src", tmp_path / "dst")
    assert sorted(os.listdir(tmp_path)) == ["dst", "src"]


def test_a_shortage_of_memory_is_told_before_loading(tmp_path):
    """A checkpoint of terabytes, all of it a hole in its file."""
    config = KoGPTConfig(n_embd=8192, n_layer=1000)
    write_hollow(tmp_path, config)
    with pytest.raises(NotEnoughResourcesError, match="memory on cpu: 1612.91 GB needed"):
        load_model(tmp_path, dtype="float16")


def test_two_converters_of_one_folder_do_not_meet(tmp_path):
    """One wins; the other is told that the folder is locked, or that it is complete."""
    write_released(tmp_path / "src")
    for round_ in range(5):
        outcomes: list[str] = []

        def run(dst=tmp_path / f"dst{round_}", outcomes=outcomes):
            try:
                done = convert(tmp_path / "src", dst, ConversionOptions(max_shard_size=300))
                outcomes.append("complete" if done.already_complete else "won")
            except KoGPTError as error:
                outcomes.append("locked" if "locked" in str(error) else str(error))

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count("won") == 1 and set(outcomes) <= {"won", "locked", "complete"}
        verify(tmp_path / f"dst{round_}", quiet=True)
        assert not (tmp_path / f".dst{round_}.partial").exists()


def test_the_tool_that_imitates_the_release_makes_what_the_converter_reads(tmp_path):
    tool = shared("tools", "make_release.py")
    pytest.importorskip("tokenizers")
    subprocess.run([sys.executable, tool, tmp_path / "src", "--tiny"], check=True)
    report = convert(tmp_path / "src", tmp_path / "dst", ConversionOptions(max_shard_size=200_000))
    assert report.copied == ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPTJForCausalLM.from_pretrained(tmp_path / "dst", dtype=torch.float32)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        ours = load_model(tmp_path / "dst")(ids)
        torch.testing.assert_close(ours, theirs(ids).logits, rtol=0, atol=1e-5)


def test_a_config_can_be_given_where_the_source_has_none(tmp_path):
    write_released(tmp_path / "src")
    (tmp_path / "src" / "config.json").unlink()
    with pytest.raises(InputRefusedError, match="config.json is missing"):
        convert(tmp_path / "src", tmp_path / "dst")
    config = dataclasses.replace(CONFIG, attn_pdrop=0.0)
    convert(tmp_path / "src", tmp_path / "dst", ConversionOptions(config=config))
    assert KoGPTConfig.from_file(tmp_path / "dst" / "config.json") == config


def test_the_licence_notice_goes_along_from_folder_to_folder(tmp_path):
    write_checkpoint(tmp_path / "a", CONFIG, tiny_state(), license_notice="CC0-1.0")
    convert(tmp_path / "a", tmp_path / "b", ConversionOptions(dtype="float16"))
    assert verify(tmp_path / "b").license == "CC0-1.0"
    convert(tmp_path / "b", tmp_path / "c", ConversionOptions(license_notice="other"))
    assert verify(tmp_path / "c").license == "other"


def test_inspect_tells_the_memory_of_all_weights_and_one_full_context(tmp_path):
    write_released(tmp_path / "src")
    report = inspect(tmp_path / "src")
    cached = 2 * CONFIG.n_layer * CONFIG.n_positions * CONFIG.n_embd  # keys and values
    numbers = CONFIG.num_parameters + cached
    assert report.memory == {
        "float16": 2 * numbers,
        "bfloat16": 2 * numbers,
        "float32": 4 * numbers,
        "on a CPU": report.nbytes + 4 * cached,
    }
    weights = tmp_path / "src" / "pytorch_model.bin"
    assert report.files == {weights.name: weights.stat().st_size}
    weights.rename(tmp_path / weights.name)  # away from its config.json
    alone = inspect(tmp_path / weights.name)
    assert alone.config is None and alone.memory["float16"] == 2 * CONFIG.num_parameters


# The hash of what is converted.


def test_the_hash_of_several_files_is_that_of_the_lines_that_sha256sum_prints(tmp_path):
    (tmp_path / "x").mkdir()
    contents = {"x/b": b"2", "a": b"1" * 99}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    with SourceHash(tmp_path, [tmp_path / name for name in contents]) as hashed:
        found = hashed.result()
    single = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    assert found["files"] == {
        name: {"size": len(data), "sha256": single[name]} for name, data in contents.items()
    }
    lines = f"{single['a']}  a\n{single['x/b']}  x/b\n"
    assert found["sha256"] == hashlib.sha256(lines.encode()).hexdigest()


def test_a_source_that_cannot_be_read_is_refused_by_its_name(tmp_path):
    with (
        SourceHash(tmp_path.parent, [tmp_path]) as hashed,
        pytest.raises(InputRefusedError, match=f"{tmp_path}: Is a directory"),
    ):
        hashed.result()


def grow(path):
    """With its time kept."""
    stat = path.stat()
    with path.open("ab") as file:
        file.write(b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("late", [lambda path: path.write_bytes(b""), os.utime, grow])
def test_a_source_that_is_written_to_meanwhile_is_refused(tmp_path, monkeypatch, late):
    """As by a download: what was hashed need not be what was converted."""
    write_released(tmp_path / "src")
    source, write = tmp_path / "src" / "pytorch_model.bin", convert_module.write_shards

    def write_and_change(*args, **kwargs):
        records = write(*args, **kwargs)
        late(source)
        return records

    monkeypatch.setattr(convert_module, "write_shards", write_and_change)
    with pytest.raises(InputRefusedError, match="pytorch_model.bin: was changed while it was read"):
        convert(tmp_path / "src", tmp_path / "dst")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_hash_waits_for_the_conversion_and_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(source_hash, "CHUNK", 4)
    monkeypatch.setattr(source_hash, "LEAD", 8)
    (tmp_path / "a").write_bytes(b"1" * 100)
    with SourceHash(tmp_path, [tmp_path / "a"]) as hashed:
        for share, reached in ((0, 12), (0.5, 60)):
            hashed.follow(share)
            end = time.perf_counter() + 5
            while hashed._done < reached and time.perf_counter() < end:
                time.sleep(0.001)
            assert hashed._done == reached and not hashed._result.done()
    assert isinstance(hashed._result.exception(), CancelledError)


def test_names_that_are_not_utf8_stay_apart():
    names = [os.fsdecode(name) for name in (b"a\xfe", b"a\xff")]
    assert list(map(source_hash.printable, names)) == [r"a\xfe", r"a\xff"]
