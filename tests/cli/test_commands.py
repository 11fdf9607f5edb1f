"""The command line as a program: results, streams, exit codes."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kogpt.box import BOX
from kogpt.cli import main
from kogpt.commands import score
from kogpt.fast import FastKoGPT
from kogpt.generation.scoring import stream_scores
from kogpt.kernels import building
from kogpt.model import KoGPT
from kogpt.training import FinetuningConfig, TrainingConfig
from tests.checkpoint.tiny import write_released
from tests.tokenizer.conftest import write_byte_level

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    *("generate", "chat", "score", "tokenize", "convert", "verify", "inspect", "train"),
    *("benchmark", "merge", "plan", "lens", "trace", "diff"),
)


def run_main(args: Sequence[str], input: bytes, encoding: str = "utf-8") -> tuple[int, str, str]:
    """Exit code, output and errors of the program, run in this process to spare its start."""
    streams = [io.TextIOWrapper(io.BytesIO(data), encoding) for data in (input, b"", b"")]
    real = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = streams
    try:
        code = main(args)
    except SystemExit as exit:  # how argparse leaves
        code = exit.code
    finally:
        sys.stdin, sys.stdout, sys.stderr = real
    for stream in streams[1:]:
        stream.flush()
    return code, *(stream.buffer.getvalue().decode(encoding) for stream in streams[1:])


def kogpt(*args: str, input: str | bytes = "", code: int = 0) -> SimpleNamespace:
    """What the program writes to each stream, its exit code checked."""
    data = input.encode() if isinstance(input, str) else input
    found, stdout, stderr = run_main(args, data)
    assert found == code, stderr
    return SimpleNamespace(stdout=stdout, stderr=stderr)


def refusal(*args: str, input: str | bytes = "", code: int) -> str:
    """The one line that a refused command writes."""
    done = kogpt(*args, input=input, code=code)
    lines = done.stderr.splitlines()
    assert done.stdout == "" and len(lines) == 1, done.stderr
    return lines[0]


def test_help_answers_at_once():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "kogpt", "--help"], cwd=ROOT, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_neither_torch_nor_numpy(command):
    code = (
        "import sys; from kogpt.cli import main\n"
        "try: main([sys.argv[1], '--help'])\n"
        "finally: assert not {'torch', 'numpy', 'sentencepiece'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "exit codes:" in done.stdout


@pytest.mark.parametrize(
    ("command", "config"), [("train", TrainingConfig), ("finetune", FinetuningConfig)]
)
def test_help_tells_how_adamw_is_set(command, config):
    told = " ".join(kogpt(command, "--help").stdout.split())
    betas = f"(betas {config.beta1} and {config.beta2})"
    assert f"of AdamW {betas}, on matrices (default: {config.weight_decay})" in told


def test_tokens_are_shown_without_torch():
    code = (
        "import sys; from kogpt.cli import main\n"
        "assert main(['tokenize', '안녕']) == 0 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_importing_the_package_imports_nothing_of_weight():
    code = "import sys, kogpt; assert not {'torch', 'numpy'} & set(sys.modules); kogpt.load"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_generate_continues_the_prompt_in_korean():
    done = kogpt("generate", "이 영화는", "--seed", "1", "--min-new-tokens", "24")
    assert re.fullmatch("이 영화는.*[가-힣].*\n", done.stdout, flags=re.DOTALL)
    assert done.stderr == ""


def test_the_same_seed_gives_the_same_text_and_another_another():
    first, again, other = (
        kogpt("generate", "배우", "--seed", seed, "--max-new-tokens", "20").stdout
        for seed in ("7", "7", "8")
    )
    assert first == again != other


def test_json_is_one_object_per_sample_and_nothing_else():
    args = ("--samples", "3", "--json", "--logprobs", "2", "--max-new-tokens", "5")
    done = kogpt("generate", "-", *args, "--seed", "3", input="오랜만에 본\n")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["sample_index"] for result in results] == [0, 1, 2]
    for result in results:
        assert result["prompt"] == "오랜만에 본"
        assert not result["text"].startswith("오랜만에 본")
        assert len(result["logprobs"]) == len(result["token_ids"]) <= 5
    assert "\\u" not in done.stdout


def test_greedy_text_is_the_same_streamed_sampled_or_as_json():
    args = ("generate", "배우들 연기가", "--temperature", "0", "--max-new-tokens", "30")
    streamed = kogpt(*args).stdout
    twice = kogpt(*args, "--samples", "2").stdout
    as_json = json.loads(kogpt(*args, "--json", "--echo").stdout)["text"] + "\n"
    assert streamed == as_json and twice == f"{streamed}\n{streamed}"


@pytest.mark.parametrize(
    "how", [["--speculate", "lookup"], ["--draft-model", "kogpt/nano", "--draft-tokens", "3"]]
)
def test_guessing_ahead_gives_the_same_text(how, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = ("generate", "배우들 배우들 배우들", "--seed", "5", "--max-new-tokens", "20")
    plain = json.loads(kogpt(*args, "--json").stdout)
    guessed = json.loads(kogpt(*args, "--json", *how).stdout)
    assert guessed.pop("drafted") >= guessed.pop("accepted") >= ("--draft-model" in how)
    assert guessed == {name: plain[name] for name in guessed}
    assert kogpt(*args, *how).stdout == kogpt(*args).stdout
    chat = kogpt("chat", "--seed", "5", *how, input="배우들 배우들 배우들\n\n30\n").stdout
    assert chat == kogpt("chat", "--seed", "5", input="배우들 배우들 배우들\n\n30\n").stdout != ""


def test_guesses_that_cannot_be_are_wrong_usage(tmp_path):
    lookup = ("generate", "한", "--speculate", "lookup")
    assert "only with --speculate" in refusal("generate", "한", "--draft-tokens", "3", code=2)
    assert "argument --draft-tokens: is 0, it must be" in refusal(
        *lookup, "--draft-tokens", "0", code=2
    )
    assert "argument --beams: not allowed" in refusal(*lookup, "--beams", "2", code=2)
    missing = str(tmp_path / "absent")
    assert missing in refusal("generate", "한", "--draft-model", missing, code=3)


def test_an_id_beyond_the_vocabulary_is_wrong_usage():
    assert "argument --stop-id: names id 8000" in refusal(
        "generate", "한", "--stop-id", "8000", code=2
    )


def test_tokens_of_a_text_give_the_text_back():
    text = "안녕하세요. 한국어 GPT 입니다.😤"
    tokens = json.loads(kogpt("tokenize", text, "--json").stdout)
    ids = " ".join(map(str, tokens["ids"]))
    assert kogpt("tokenize", "--decode", ids).stdout == text + "\n"
    assert len(tokens["pieces"]) == len(tokens["ids"])


def test_a_typed_special_token_is_text_unless_asked_for():
    typed = json.loads(kogpt("tokenize", "[EOS]", "--json").stdout)["ids"]
    special = json.loads(kogpt("tokenize", "[EOS]", "--json", "--special").stdout)["ids"]
    assert len(special) == 1 and len(typed) > 1 and special[0] not in typed


def test_a_missing_tokenizer_is_told_before_weights_are_loaded(tmp_path, monkeypatch):
    for name in ("config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"):
        shutil.copy(BOX / name, tmp_path)
    for name in ("kogpt.loading.load_model", "kogpt.fast.load_fast"):
        monkeypatch.setattr(name, lambda *_, **more: pytest.fail("weights were loaded"))
    for how in ([], ["--reference"]):
        told = refusal("generate", "가", "--model", str(tmp_path), *how, code=3)
        assert told.endswith("holds neither tokenizer.model nor tokenizer.json")
    # What is no checkpoint at all is told as that.
    assert "holds no weights" in refusal("generate", "가", "--model", str(tmp_path.parent), code=3)


def test_scores_come_one_per_line_and_prefer_korean_to_noise():
    done = kogpt("score", "-", "--json", input="정말 재미있는 영화\n뷁뤫 쉙 뚫떪 궳\n")
    likely, unlikely, both = map(json.loads, done.stdout.splitlines())
    assert likely["bits_per_byte"] < both["bits_per_byte"] < unlikely["bits_per_byte"]
    assert both["num_texts"] == 2 and both["num_syllables"] == 8 + 6
    assert both["log_likelihood"] == likely["log_likelihood"] + unlikely["log_likelihood"]


def test_scores_are_those_of_the_readable_network(monkeypatch):
    networks = []

    def scores(model, *given, **more):
        networks.append(type(model))
        return stream_scores(model, *given, **more)

    monkeypatch.setattr(score, "stream_scores", scores)
    found, wanted = (
        json.loads(kogpt("score", "정말 재미있는 영화", "--json", *how).stdout)
        for how in ([], ["--reference"])
    )
    assert networks == [FastKoGPT, KoGPT]
    assert found["token_ids"] == wanted["token_ids"]
    assert found["logprobs"][1:] == pytest.approx(wanted["logprobs"][1:], abs=1e-4)


def test_scores_of_rows_of_a_file_are_added_up_on_a_last_line(tmp_path):
    data = tmp_path / "reviews.tsv"
    data.write_text("id\ttext\n1\t정말 재미있는 영화\n2\t\n3\tgood\n4\t별로\n")
    asked = ("score", "--data", str(data), "--column", "text")
    *rows, corpus = kogpt(*asked, "--limit", "2").stdout.splitlines()
    assert [row.split("\t")[-1] for row in rows] == ["정말 재미있는 영화", "good"]
    assert "/syllable" in rows[0] and "-/syllable" in rows[1]
    assert corpus.endswith("[all 2 texts]")
    found = [json.loads(line) for line in kogpt(*asked, "--json").stdout.splitlines()]
    assert [one.get("num_texts") for one in found] == [None, None, None, 3]
    assert len(kogpt("score", "별로").stdout.splitlines()) == 1  # one text is its own total


def test_lines_end_where_files_say_so_and_nowhere_else(tmp_path):
    """Unicode knows more ends of lines than a text file has, and Windows writes two characters."""
    text = "좋은 영화\u2028다시\x85본다\r\n별로\r\n"
    path = tmp_path / "reviews.txt"
    path.write_bytes(text.encode())
    read = kogpt("score", "-", "--json", input=text).stdout
    assert read == kogpt("score", "--data", str(path), "--json").stdout
    rows = [json.loads(line) for line in read.strip().split("\n")]
    assert [row.get("text") for row in rows] == ["좋은 영화\u2028다시\x85본다", "별로", None]
    whole = kogpt("tokenize", "-", input="이 영화는\r\n").stdout
    assert whole == kogpt("tokenize", "이 영화는").stdout
    assert whole == kogpt("tokenize", "-", input="\ufeff이 영화는\n").stdout  # as Windows begins


def test_a_text_file_with_a_header_wants_the_column_that_is_named(tmp_path):
    path = tmp_path / "ratings.txt"
    path.write_text("id\tdocument\n1\t좋은 영화\n", encoding="utf-8")
    asked = ("score", "--data", str(path), "--column")
    assert "no column 'text'; there are id, document" in refusal(*asked, "text", code=3)
    assert "[all 1 texts]" in kogpt(*asked, "document").stdout
    path.write_text("별로\n좋은 영화\n", encoding="utf-8")
    assert "no column 'text'; there are 별로" in refusal(*asked, "text", code=3)


def test_a_text_that_cannot_be_scored_is_named_by_file_and_row(tmp_path):
    path, other = tmp_path / "reviews.txt", tmp_path / "others.txt"
    path.write_text("좋은 영화\n", encoding="utf-8")
    other.write_text("별로\n\n" + "정말 " * 2000, encoding="utf-8")
    told = refusal("score", "--data", str(path), str(other), code=3)
    assert f"{other}: row 3 has " in told and "the context of the model holds 1024" in told
    told = refusal("score", "-", input="별로\n\n" + "정말 " * 2000, code=3)
    assert "line 3 has " in told and told.endswith(
        "holds 1024; a stride (--stride) reads it in windows"
    )
    asked = ("score", "-", "--json", "--stride")
    done = kogpt(*asked, "512", input="별로\n\n" + "정말 " * 600)
    _, long, both = map(json.loads, done.stdout.splitlines())
    assert long["num_eojeols"] == 600 and both["num_texts"] == 2
    told = refusal(*asked, "1024", input="별로", code=2)
    assert "argument --stride: is 1024, it must be" in told
    absent = tmp_path / "absent"
    assert f"{absent}: no such file" in refusal("score", "--data", str(absent), code=3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("text\ttext\na\tb\n", "several columns 'text'"),
        ("x" * 10_000, f"there are {'x' * 100}…"),
    ],
)
def test_a_table_without_a_usable_header_is_refused(content, words, tmp_path):
    path = tmp_path / "reviews.tsv"
    path.write_text(content)
    asked = ("score", "--data", str(path), "--column", "text")
    assert refusal(*asked, code=3).endswith(words)


def test_an_output_that_is_not_utf_8_shows_what_it_can():
    code, out, errors = run_main(["tokenize", "--decode", "0 244 163 156 132"], b"", "euc_kr")
    told = "kogpt: the output is in euc_kr: ? stands for a character that it lacks\n"
    assert (code, errors) == (0, told) and out.endswith("?\n")
    code, out, errors = run_main(["tokenize", "영화 😀", "--json"], b"", "euc_kr")
    pieces = json.loads(out)["pieces"]
    assert (code, errors) == (0, "") and pieces == json.loads(
        kogpt("tokenize", "영화 😀", "--json").stdout
    )["pieces"]


def test_errors_do_not_go_to_the_output_where_there_is_no_place_for_them():
    done = subprocess.run(
        f"{sys.executable} -m kogpt tokenize --decode x 2>&-",
        shell=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("generate", "가", "--temperature", "-1"), "argument --temperature: is -1.0, it must be"),
        (("generate", "가", "--top-p", "1.5"), "argument --top-p: is 1.5, it must be"),
        (("generate", "가", "--seed", str(2**64)), "argument --seed: is"),
        (("generate", "가", "--logit-bias", "7"), "not of the form ID=X"),
        (("generate", "가", "--device", "gpu9"), "no such device"),
        (("score",), "either TEXT or --data"),
        (("score", "가", "--data", "x.tsv"), "either TEXT or --data"),
        (("score", "가", "--limit", "1"), "only with --data"),
        (("score", "--data", "x.tsv", "--limit", "0"), "at least 1"),
        (("tokenize", "--decode", "1 x"), "'x' is not a token id"),
        (("tokenize", "--decode", "[1,2"), "'[1' is not a token id"),
        (("tokenize", "--decode", "99999999"), "99999999"),
        (("tokenize", "--decode", "1" * 5000), "is not a token id"),
        (("tokenize", "--decode", "--special", "1"), "not with --decode"),
        (("generate", "가", "--logprobs", "1"), "only with --json"),
        (
            ("generate", "가", "--length-penalty", "2"),
            "argument --length-penalty: is of use with --beams",
        ),
        (("benchmark", "--threads", "5000"), "argument --threads: must be at most 1024, is 5000"),
        (("generate", "가", "--beams", "2", "-n", "3"), "argument --samples: is 3, it must be"),
        (("generate", "가", "--samples", "0"), "argument --samples: is 0, it must be"),
        (("generate", "가", "--beams", "0"), "argument --beams: is 0, it must be"),
        (("generate", "가", "--logit-bias", "5=1", "--logit-bias", "5=2"), "id 5 is given twice"),
    ],
)
def test_a_value_out_of_range_is_one_line_and_exit_code_2(args, words):
    assert words in refusal(*args, code=2)


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """Where compiled kernels are looked for, empty, on a machine that has no GPU."""
    for kind in building.SOURCES:
        building.source_hash(kind)  # of the real sources, and remembered
    monkeypatch.setattr(building, "HERE", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


def put_library(folder: Path) -> None:
    """A library that is not looked into, with its record."""
    (folder / "library_cuda.so").touch()
    versions = ("8.0;9.0+PTX", "CUDA 13.0", "2.12.1")
    record = building.Record(building.source_hash("cuda"), *versions, seconds=61.5, size=0)
    (folder / "library_cuda.json").write_text(json.dumps(vars(record)))


def test_inspect_passes_nothing_over():
    for path in ("", "x.py:X"):
        done = kogpt("inspect", "--kernels", "--architecture", path, code=2)
        assert done.stderr == "kogpt: argument --kernels: not allowed with --architecture\n"
    kogpt("inspect", "", code=2)  # as of a shell's variable that is not set


def test_inspect_tells_which_kernel_each_shape_would_run_or_why_none(kernels):
    report = json.loads(kogpt("inspect", "--kernels", "--json").stdout)
    assert report["libraries"]["cuda"] == {"library": None, "unused": "no CUDA device"}
    found = set()
    for plan in report["plans"]:
        expected = {
            "prefill, 2048 tokens": (1, 2048, ["forward"]),
            "training, 2048 tokens": (1, 2048, ["forward", "backward"]),
            "training with dropout": (1, 2048, []),
            "decode, 1 token": (1, 1, ["decode"]),
            "decode, 8 tokens": (1, 8, ["decode"]),
            "decode, batch of 8": (8, 1, ["decode"]),
        }
        batch, queries, runs = expected[plan["call"]]
        taken = plan["head_dim"] in (64, 128, 256) and plan["dtype"] != "float32"
        assert plan["kernels"] == (runs if taken else [])
        assert bool(plan["reason"]) is not bool(plan["kernels"])
        assert (plan["batch"], plan["queries"], plan["keys"]) == (batch, queries, 2048)
        found.add((plan["call"], plan["head_dim"], plan["dtype"]))
    assert len(found) == len(report["plans"]) == len(expected) * 4 * 3


def test_inspect_shows_a_table_of_the_kernels_and_why_there_are_none(kernels, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    libraries, attention = kogpt("inspect", "--kernels").stdout.split("\n\n")
    library, machine, *_ = libraries.splitlines()
    where, head, *rows = attention.splitlines()
    assert library == "CUDA library: none"
    assert machine == "  this machine uses none: this build of torch has no CUDA"
    assert where == "attention on a CUDA device that has the kernels:"
    assert head.split()[-1] == "runs"
    cells = [re.split("  +", row) for row in rows]
    assert cells[0] == ["prefill, 2048 tokens", "64 128 256", "float16 bfloat16", "forward"]
    assert ["", "64 80 128 256", "float32", "SDPA: float32"] in cells
    assert ["", "80", "float16 bfloat16", "SDPA: heads of 80"] in cells
    assert max(map(len, [head, *rows])) <= 100


@pytest.mark.parametrize("capability", [(9, 0), (7, 5)])
def test_inspect_describes_compiled_kernels_and_whether_the_gpu_uses_them(
    kernels, monkeypatch, capability
):
    put_library(kernels)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    page = kogpt("inspect", "--kernels").stdout
    for words in (f"{kernels}/library_cuda.so", "8.0;9.0+PTX", "CUDA 13.0", "2.12.1", "61.5 s"):
        assert words in page
    report = json.loads(kogpt("inspect", "--kernels", "--json").stdout)["libraries"]["cuda"]
    assert report["library"]["architectures"] == "8.0;9.0+PTX"
    if capability == (9, 0):
        assert "  this device uses it\nCPU library" in page and "attention on this device:" in page
        assert report["unused"] is None
    else:
        assert "uses none: this GPU is sm_75" in page and "sm_75" in report["unused"]


def test_inspect_describes_the_kernels_of_the_processor(kernels, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    page = kogpt("inspect", "--kernels").stdout
    assert "CPU library: none\n  this machine uses none: no C++ compiler" in page
    found = json.loads(kogpt("inspect", "--kernels", "--json").stdout)
    assert found["libraries"]["cpu"]["library"] is None
    has_avx2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    assert ("avx2" in found["instruction_sets"]) is has_avx2 is ("avx2" in page)


def test_kernels_are_not_looked_for_in_a_checkpoint():
    line = refusal("inspect", "--kernels", "kogpt/nano", code=2)
    assert "--kernels: not allowed with a checkpoint: kogpt/nano" in line


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            ("generate",),
            "the following arguments are required: PROMPT; one that begins with -",
        ),
        (("nonsense",), "argument COMMAND: invalid choice: 'nonsense'"),
        (("generate", "가", "--seed", "abc"), "argument --seed: invalid int value: 'abc'"),
        (
            ("generate", "가", "나", "다"),
            "unrecognized arguments: '나' '다'; a text with spaces goes in quotes (see kogpt gen",
        ),
        (("verify", "x", "--deep"), "unrecognized arguments: --deep (see kogpt verify --help)"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(args, told):
    assert refusal(*args, code=2).startswith(f"kogpt: {told}")


@pytest.mark.parametrize(
    ("args", "input", "words"),
    [
        (("generate", "-"), b"\xed\x95", "standard input is not UTF-8"),
        (("generate", "가", "--model", "/nonexistent"), b"", "/nonexistent"),
        (("inspect", "/nonexistent"), b"", "/nonexistent"),
        (("verify", "/nonexistent"), b"", "/nonexistent"),
        (("verify", "tests"), b"", "tests: no manifest.json, which kogpt convert writes"),
        (("generate", "가", "--adapter", "tests"), b"", "tests: no adapter: it has no adapter_co"),
        (("convert", "/nonexistent", "x"), b"", "/nonexistent"),
        (("generate", "가나다라마 " * 1024), b"", "1024"),
        (("score", "-"), b"", "no text"),
        (("score", "--data", "/nonexistent.tsv"), b"", "/nonexistent.tsv"),
    ],
)
def test_an_input_that_cannot_be_used_is_one_line_and_exit_code_3(args, input, words):
    assert words in refusal(*args, input=input, code=3)


def test_a_lone_surrogate_in_an_argument_is_named_and_refused():
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"kogpt", b"generate", b"\xed\x95\x9c\xed\x95"],
        cwd=ROOT,
        capture_output=True,
    )
    assert done.returncode == 3
    assert b"U+DCED" in done.stderr and b"Traceback" not in done.stderr


def test_interrupting_a_generation_is_exit_code_130():
    process = subprocess.Popen(
        [sys.executable, "-m", "kogpt", "generate", "이 영화는", "--min-new-tokens", "1000"]
        + ["--max-new-tokens", "1000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A background job ignores SIGINT, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    begun = process.stdout.read(len("이 영화는".encode()))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert begun.decode() == "이 영화는"
    assert process.returncode == 130
    assert stderr == b"kogpt: interrupted\n"


def test_a_reader_that_leaves_is_no_traceback():
    line = f'"{sys.executable}" -m kogpt tokenize "$(yes 가나 | head -n 9999)" | head -n 1'
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""


BUFFERED = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [("| true", 1, ""), ("> /dev/full", 4, "kogpt: No space left on device\n")],
)
def test_output_that_goes_nowhere_is_told_even_when_it_is_short(target, code, message):
    line = f'set -o pipefail; "{sys.executable}" -m kogpt tokenize 가나 {target}'
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, env=BUFFERED
    )
    assert (done.returncode, done.stderr) == (code, message)


@pytest.mark.parametrize("arguments", ["generate -", "generate 이 --max-new-tokens 1", ""])
def test_no_standard_input_at_all_is_no_traceback(arguments):
    line = f'"{sys.executable}" -m kogpt {arguments} <&-'
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    wanted = arguments.startswith("generate 이")
    assert done.returncode == (0 if wanted else 3)
    assert "Traceback" not in done.stderr and ("is closed" in done.stderr) != wanted


def test_a_closed_output_is_told():
    line = f'"{sys.executable}" -m kogpt generate 이 --max-new-tokens 1 >&-'
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "kogpt: standard output is closed\n")


@pytest.mark.parametrize("more", [("--seed", "-1"), ("--seed", "18446744073709551616")])
def test_the_prompt_loop_refuses_its_options_before_it_asks(more):
    done = kogpt(*more, input="이\n\n5\n", code=2)
    assert done.stderr.startswith("kogpt: argument --seed: is ") and "prompt>" not in done.stderr


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_a_device_of_another_kind_is_refused(device):
    assert "must be cpu or cuda" in refusal("generate", "이", "--device", device, code=2)


@pytest.mark.parametrize(("command", "key"), [("score", "token_ids"), ("lens", "tokens")])
def test_decomposed_hangul_is_read_as_it_is_where_that_is_asked(command, key):
    asked = (command, "\u1100\u1161", "--json")
    composed = json.loads(kogpt(*asked).stdout)
    whole = json.loads(kogpt(*asked, "--normalize", "none").stdout)
    assert len(composed[key]) == 2 and len(whole[key]) == 7


def test_without_a_command_prompts_are_read_from_a_pipe_too():
    done = kogpt("--seed", "1", input="이 영화는\n0.8\n20\n")
    assert done.stdout.startswith("이 영화는")
    assert "prompt> " in done.stderr


def test_bytes_that_are_not_utf_8_are_told_and_asked_again_at_the_prompt():
    done = kogpt(input=b"\xed\x95\n" + "이 영화는\n0\n8\n".encode())
    assert "half characters (lone surrogates U+DCED, U+DC95" in done.stderr
    assert done.stdout.startswith("이 영화는")


def test_lines_of_a_piped_file_may_end_in_two_characters():
    answers = "이 영화는\n\n20\n"
    plain = kogpt("chat", "--seed", "3", input=answers)
    done = kogpt("chat", "--seed", "3", input=answers.replace("\n", "\r\n"))
    assert done.stdout == plain.stdout != ""


def test_the_length_that_the_prompt_offers_can_be_taken():
    """128 would be shorter than this prompt."""
    long = " ".join(["정말"] * 1000)
    done = kogpt("chat", "--seed", "3", input=f"{long}\n\n\n")
    assert "max_length(1024)> " in done.stderr
    assert done.stdout.startswith(long)


def test_a_mark_that_begins_a_file_is_no_part_of_a_prompt_and_no_number_is_too_long():
    answers = "이 영화는\n0\n8\n"
    plain = kogpt(input=answers).stdout
    assert kogpt(input=f"\ufeff{answers}").stdout == plain
    long = kogpt(input=answers.replace("8", f"{'1' * 5000}\n8"))
    assert long.stdout == plain and "it counts the prompt, so give" in long.stderr


def test_a_conversion_tells_what_will_keep_the_result_from_reading_text(tmp_path):
    write_released(tmp_path / "src")
    for options in (("--dry-run",), ()):
        told = kogpt("convert", str(tmp_path / "src"), str(tmp_path / "dst"), *options).stderr
        assert told.startswith("note: no text can be read with the result: ")
        assert told.endswith("/src: holds neither tokenizer.model nor tokenizer.json\n")
    write_byte_level(tmp_path / "src")
    again = ("convert", str(tmp_path / "src"), str(tmp_path / "again"))
    assert kogpt(*again).stderr.endswith(": the tokenizer has 423 ids, the model 97\n")
    assert kogpt("convert", str(BOX), str(tmp_path / "nano")).stderr == ""


def test_a_conversion_tells_of_templates_that_stay_behind(tmp_path):
    write_released(tmp_path / "src")
    (tmp_path / "src" / "additional_chat_templates").mkdir()
    told = kogpt("convert", str(tmp_path / "src"), str(tmp_path / "dst")).stderr
    assert "src/additional_chat_templates stays behind: copy it" in told


def test_the_tokenizer_of_a_file_lies_beside_it(tmp_path):
    write_released(tmp_path / "src")
    write_byte_level(tmp_path / "src")
    file = tmp_path / "src" / "pytorch_model.bin"
    told = kogpt("convert", str(file), str(tmp_path / "dst")).stderr
    assert told.endswith(": the tokenizer has 423 ids, the model 97\n")
