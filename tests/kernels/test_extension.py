"""Finding, compiling and loading the kernels, with and without a CUDA toolkit or a C++ compiler.

Most tests compile nothing of weight: a toolkit of shell scripts stands in for CUDA's, and a copy of
the package has trivial sources. Some run the real compilers on the real kernels.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from kogpt.kernels import building, extension, targets
from kogpt.kernels.building import CannotBuildError, Record
from kogpt.kernels.targets import Cpu, Gpu, Target
from tests.server import Forked

from . import test_gpu

ROOT = Path(building.__file__).resolve().parents[2]
CUDA = torch.version.cuda or "13.0"
HOPPER = Gpu((9, 0))
needs_cuda_torch = pytest.mark.skipif(
    torch.version.cuda is None, reason="links against a CUDA build of torch"
)

NVCC = """\
#!/bin/sh
here=$(dirname "$(dirname "$(readlink -f "$0")")")
case "$*" in
--version) echo "Cuda compilation tools, release {release}, V{release}.1" && exit ;;
--dryrun*) echo "#\\$ TOP=$here/bin/.." >&2 && exit ;;
esac
echo "$TMPDIR" >> "$here/compilations"
while [ -e "$here/slow" ]; do sleep 0.1; done
[ -e "$here/fail" ] && cat "$here/fail" >&2 && exit 1
while [ "$1" != "-o" ]; do
  [ "$1" = "-MF" ] && : > "$2"
  shift
done
c++ -x c++ -fPIC -c /dev/null -o "$2"
"""


@pytest.fixture
def toolkit(tmp_path):
    """A folder that looks like a CUDA toolkit of torch's own release; files in it steer it."""
    return make_toolkit(tmp_path / "toolkit", CUDA)


def make_toolkit(folder: Path, release: str) -> Path:
    for part in ("bin", "include", "lib64"):
        (folder / part).mkdir(parents=True)
    write_program(folder / "bin" / "nvcc", NVCC.format(release=release))
    runtime = folder / "lib64" / "libcudart.so"
    subprocess.run(["c++", "-shared", "-x", "c++", "/dev/null", "-o", runtime], check=True)
    return folder


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


class Package:
    """A copy of the package whose kernels are trivial files, and a cache of its own."""

    def __init__(self, folder: Path, toolkit: Path) -> None:
        self.kernels, self.toolkit = folder / "kogpt" / "kernels", toolkit
        self.cache = folder / "a cache" / "kogpt" / "kernels"
        shutil.copytree(ROOT / "kogpt" / "kernels", self.kernels, ignore=lambda *_: ["csrc"])
        for name in ("__init__.py", "notes.py"):
            shutil.copy(ROOT / "kogpt" / name, folder / "kogpt")
        self.source("kernel.cu", "int one;")
        self.source("bindings.cpp", "int two;")
        self.source("cpu/bindings.cpp", "int three;")
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "XDG_CACHE_HOME": str(folder / "a cache"),
            "CUDA_HOME": str(toolkit),
            "TORCH_CUDA_ARCH_LIST": "9.0",
            "MAX_JOBS": "1",
        }

    def source(self, name: str, text: str) -> None:
        path = self.kernels / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def start(self, target: Target = HOPPER) -> Forked:
        """A process that asks for the kernels of a target; it prints whether it got them."""
        return Forked(self.environment, ask_for_kernels, self.kernels, target)

    def start_code(self, code: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            env=self.environment,
            cwd="/",
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def ask(self, target: Target = HOPPER) -> tuple[str, str]:
        return answer(self.start(target))

    def compilations(self) -> int:
        counted = self.toolkit / "compilations"
        return len(counted.read_text().splitlines()) if counted.exists() else 0


def ask_for_kernels(kernels: Path, target: Target) -> None:
    """Asks as if the package lay elsewhere."""
    os.setsid()
    os.chdir("/")
    building.HERE, building.__file__ = kernels, str(kernels / "building.py")
    building.SOURCES |= {"cuda": kernels / "csrc", "cpu": kernels / "csrc" / "cpu"}
    print(extension.load(target), extension.find(target))


def wait_for_compiler(package: Package, process: Forked) -> None:
    while package.compilations() == 0:
        assert process.poll() is None, process.written(1)
        time.sleep(0.05)


def answer(process: Forked) -> tuple[str, str]:
    """What a process writes to output and errors until it ends."""
    return process.finish(time.monotonic() + 120)[1:]


@pytest.fixture
def package(tmp_path, toolkit):
    return Package(tmp_path / "copy", toolkit)


@needs_cuda_torch
def test_the_kernels_are_compiled_once_and_again_when_a_source_changes(package):
    out, err = package.ask()
    assert out.startswith("True") and len(err.splitlines()) == 1, err
    assert "compiling" in err and "9.0" in err and "once" in err
    (library,) = package.cache.glob("*/library_cuda.so")
    record = json.loads(library.with_suffix(".json").read_text())
    assert (record["architectures"], record["compiler"]) == ("9.0", f"CUDA {CUDA}")
    assert record["torch"] == torch.__version__ and record["seconds"] > 0
    package.source("cpu/bindings.cpp", "int four;")  # of the other library
    assert package.ask() == (out, "")
    assert package.compilations() == 1
    temporary = (package.toolkit / "compilations").read_text()
    assert temporary.startswith(f"{package.cache}/partial-")  # the usual place may be full

    package.source("kernel.cu", "int another;")
    out, err = package.ask()
    assert out.startswith("True") and "compiling" in err
    assert package.compilations() == 2


@needs_cuda_torch
def test_processes_that_start_together_compile_once(package):
    processes = [package.start() for _ in range(3)]
    answers = [answer(process) for process in processes]
    assert len({out for out, _ in answers}) == 1 and answers[0][0].startswith("True")
    assert sum(err.count("compiling") for _, err in answers) == 1
    assert package.compilations() == 1


@needs_cuda_torch
def test_a_compilation_that_is_killed_leaves_nothing_that_breaks_the_next(package):
    (package.toolkit / "slow").touch()
    process = package.start()
    wait_for_compiler(package, process)
    os.killpg(process.pid, signal.SIGKILL)
    answer(process)
    assert list(package.cache.glob("partial-*"))
    (package.toolkit / "slow").unlink()
    out, err = package.ask()
    assert out.startswith("True") and err.count("\n") == 1, err
    assert not list(package.cache.glob("partial-*"))


@needs_cuda_torch
def test_a_compiler_that_outlives_its_process_is_waited_for(package):
    (package.toolkit / "slow").touch()
    first = package.start()
    wait_for_compiler(package, first)
    os.kill(first.pid, signal.SIGKILL)
    second = package.start()
    while "waiting" not in second.written(1):
        assert second.poll() is None, second.written(1)
        time.sleep(0.05)
    assert package.compilations() == 1
    (package.toolkit / "slow").unlink()
    assert answer(second)[0].startswith("True") and package.compilations() == 2


@needs_cuda_torch
def test_a_cache_that_is_removed_during_a_compilation_is_named(package):
    (package.toolkit / "slow").touch()
    process = package.start()
    wait_for_compiler(package, process)
    shutil.rmtree(package.cache)
    (package.toolkit / "slow").unlink()
    out, err = answer(process)
    assert out.startswith("False")
    assert err.endswith(f" {package.cache} was removed while they were compiled\n")
    assert package.ask()[0].startswith("True")


def test_a_lock_whose_file_is_removed_before_it_is_had_is_made_again(tmp_path, monkeypatch):
    real, path, calls = fcntl.flock, tmp_path / "cache" / "lock", []

    def flock(file, how):
        real(file, how)
        calls.append(how)
        if len(calls) == 1:
            shutil.rmtree(path.parent)

    monkeypatch.setattr(fcntl, "flock", flock)
    with extension._locked(path) as lock:
        assert len(calls) == 2 and os.path.samestat(os.fstat(lock), path.stat())


@needs_cuda_torch
def test_a_compilation_that_fails_is_told_and_not_tried_again(package, tmp_path):
    (package.toolkit / "fail").write_text("error: as told\n")
    out, err = package.ask()
    reason = err.splitlines()[-1]
    log = Path(re.search(r"see (/.*\.log)$", reason)[1])
    assert out.startswith("False") and "using PyTorch's" in reason
    assert "error: as told" in log.read_text()

    (package.toolkit / "fail").unlink()
    tried = package.compilations()
    out, err = package.ask()
    assert out.startswith("False") and err.count("\n") == 1 and f"remove {log}" in err
    assert package.compilations() == tried
    told = package.start_code(
        "from kogpt.kernels import extension as e; from kogpt.kernels.targets import Gpu\n"
        f"Gpu.current = classmethod(lambda cls: {HOPPER}); print(e.status('cuda'))"
    )
    assert f"remove {log}" in told.communicate()[0]

    write_program(tmp_path / "other", '#!/bin/sh\nexec c++ "$@"\n')  # and another compiler
    package.environment["CXX"] = str(tmp_path / "other")
    assert package.ask()[0].startswith("True")


@needs_cuda_torch
@pytest.mark.parametrize("reason", ["No space left on device", "Too many open files"])
def test_a_failure_that_passes_is_tried_again(package, reason):
    (package.toolkit / "fail").write_text(f"fatal error: no.o: {reason}\n")
    out, err = package.ask()
    assert out.startswith("False") and err.endswith(f"compiling it failed: {reason}\n")
    (package.toolkit / "fail").unlink()
    assert package.ask()[0].startswith("True")


def test_a_cache_that_is_no_absolute_path_does_not_count(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert extension.cache_folder() == Path.home() / ".cache/kogpt/kernels"


def test_a_cache_that_may_not_be_read_is_none(monkeypatch):
    def locked(*_):
        raise PermissionError(13, "Permission denied", "a cache of others")

    monkeypatch.setattr(Path, "glob", locked)
    assert all(library.path.parent == building.HERE for library in extension.libraries("cpu"))


def test_a_library_of_which_nothing_may_be_read_is_none(empty_cache, monkeypatch):
    put_library(empty_cache / f"{building.source_hash('cpu')}-CPU", "cpu")
    assert list(extension.libraries("cpu"))[-1].path.is_relative_to(empty_cache)

    def locked(*_):
        raise PermissionError(13, "Permission denied", "a record of others")

    monkeypatch.setattr(extension, "read_record", locked)
    assert not list(extension.libraries("cpu"))


def test_without_a_home_there_is_no_cache_and_a_reason(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert all(library.path.parent == building.HERE for library in extension.libraries("cpu"))
    with pytest.raises(building.CannotBuildError, match="no XDG_CACHE_HOME, and: Could not"):
        extension.cache_folder()


def test_an_nvcc_outside_its_toolkit_leads_to_the_toolkit(toolkit, tmp_path, monkeypatch):
    write_program(tmp_path / "nvcc", f'#!/bin/sh\nexec "{toolkit}/bin/nvcc" "$@"\n')
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch.version, "cuda", CUDA)
    assert building.find_toolkit() == building.Toolkit(toolkit, CUDA)


@pytest.fixture
def lines(capfd, monkeypatch):
    """What asking for the kernels of a target writes to standard error, having got none."""
    monkeypatch.setattr(torch.version, "cuda", CUDA)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)

    def ask(target=HOPPER):
        extension.load.cache_clear()
        assert extension.load(target) is False
        assert extension.load(target) is False  # told once
        return capfd.readouterr().err.splitlines()

    yield ask
    extension.load.cache_clear()


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    return tmp_path / "empty" / "kogpt" / "kernels"


def test_no_toolkit_is_one_line(lines, empty_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    (line,) = lines()
    assert "using PyTorch's" in line and f"no nvcc in {tmp_path}" in line


def test_a_toolkit_of_another_major_version_is_one_line(lines, empty_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "old", "9.2")))
    (line,) = lines()
    assert f"CUDA 9.2 and torch of CUDA {CUDA}" in line


@pytest.mark.parametrize("target", [HOPPER, Cpu()], ids=lambda target: target.kind)
def test_no_compiler_is_one_line(target, lines, empty_cache, toolkit, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.setenv("CXX", "no-such-compiler")
    (line,) = lines(target)
    assert f"no {target.name} kernels, using PyTorch's" in line and "no-such-compiler" in line


def test_a_compiler_that_is_no_command_is_one_line(lines, empty_cache, monkeypatch):
    monkeypatch.setenv("CXX", 'g++ "')
    (line,) = lines(Cpu())
    assert line.endswith("no C++ compiler: CXX is 'g++ \"': No closing quotation")


def test_an_interpreter_that_is_gone_is_one_line(lines, empty_cache, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    *_, line = lines(Cpu())
    assert line.endswith(" /nowhere/python: No such file or directory")


def test_a_folder_in_which_nothing_may_run_is_one_line(lines, empty_cache, monkeypatch):
    put_library(empty_cache / f"{building.source_hash('cpu')}-CPU", "cpu")

    def refuse(path):
        raise OSError("Could not load this library") from OSError(f"{path}: failed to map segment")

    monkeypatch.setattr(torch.ops, "load_library", refuse)
    (line,) = lines(Cpu())
    assert "using PyTorch's slower" in line and "library_cpu.so: failed to map segment; is" in line
    monkeypatch.setattr(os, "access", lambda *_: False)
    (line,) = lines(Cpu())
    assert line.endswith("library_cpu.so: no permission to read it")


def test_any_of_the_usual_compilers_will_do(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotBuildError, match="no C\\+\\+ compiler"):
        building.find_compiler()
    write_program(tmp_path / "clang++", "#!/bin/sh\n")
    assert building.find_compiler() == "clang++"
    write_program(tmp_path / "c++", "#!/bin/sh\n")
    assert building.find_compiler() == "c++"


def test_a_blank_cxx_names_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", " ")
    monkeypatch.setenv("PATH", str(tmp_path))
    write_program(tmp_path / "g++", "#!/bin/sh\n")
    assert building.find_compiler() == "g++"
    assert building.compiler_of("cpu") == "unknown"  # it says nothing of its version


def test_a_toolkit_is_that_of_cuda_home_or_else_of_cuda_path_or_else_of_the_path(
    tmp_path, monkeypatch
):
    names = {"home": "CUDA_HOME", "path": "CUDA_PATH", "other": "PATH"}
    for name, variable in names.items():
        (tmp_path / name / "bin").mkdir(parents=True)
        write_program(tmp_path / name / "bin" / "nvcc", "#!/bin/sh\n")
        part = tmp_path / name / "bin" if variable == "PATH" else tmp_path / name
        monkeypatch.setenv(variable, str(part))
    for name, variable in names.items():
        assert building.find_nvcc() == str(tmp_path / name / "bin" / "nvcc")
        if variable != "PATH":
            monkeypatch.setenv(variable, "")


@pytest.mark.parametrize("printed", ["release 13.0", "#\\$ TOP=/", ""])
def test_an_nvcc_that_says_half_of_what_it_should_does_not_work(printed, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    write_program(tmp_path / "bin" / "nvcc", f'#!/bin/sh\necho "{printed}"\n')
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(CannotBuildError, match="nvcc does not work$"):
        building.find_toolkit()


@pytest.mark.parametrize("given", ["8.0", "9.0a", "8.0 8.6;9.0+PTX", "10.0a+PTX"])
def test_architectures_by_number_are_taken(given):
    building.refuse_architectures(given)


@pytest.mark.parametrize("given", ["", "9", "9.0 +PTX", "9.0-PTX", "9.0PTX", "9.0,8.0"])
def test_architectures_of_another_form_are_refused(given):
    with pytest.raises(CannotBuildError, match="is not of the form 9.0 or 9.0\\+PTX"):
        building.refuse_architectures(given)


def test_a_command_is_one_word_to_those_who_split_it():
    assert building.as_program(["/usr/bin/c++"]) == "/usr/bin/c++"
    program = building.as_program(["/bin/echo", "a b"])
    assert subprocess.check_output([program, "c d"], text=True) == "a b c d\n"
    assert " " not in building.as_program(["/my compilers/c++"])


def test_the_hash_of_sources_knows_each_by_its_name_and_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "HERE", tmp_path)
    monkeypatch.setitem(building.SOURCES, "cpu", tmp_path / "cpu")
    (tmp_path / "cpu").mkdir()
    seen = set()
    for name, text in (
        ("building.py", "1"), ("building.py", "2"), ("cpu/a.cpp", "1"), ("cpu/a.cpp", "2"),
        ("cpu/b.h", "1"), ("cpu/b.h", "2"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        seen.add(building.source_hash.__wrapped__("cpu"))
    (tmp_path / "cpu/b.h").rename(tmp_path / "cpu/c.h")
    seen.add(building.source_hash.__wrapped__("cpu"))
    monkeypatch.setattr(building, "machine", lambda: "mips")
    assert len(seen | {building.source_hash.__wrapped__("cpu")}) == 8


def test_c_and_cxx_are_compiled_by_one_compiler_whatever_flags_are_set(monkeypatch):
    for name in ("CC", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS"):
        monkeypatch.setenv(name, "-march=native")
    monkeypatch.setenv("CXX", "c++")
    building.settle_environment(["cpu"], "")
    assert os.environ["CC"] == os.environ["CXX"] == "c++"
    assert not {"CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS"} & set(os.environ)


def test_a_gpu_that_is_too_old_is_one_line(lines, empty_cache):
    (line,) = lines(Gpu((7, 5)))
    assert "sm_75" in line and "sm_80" in line


def test_architectures_without_this_gpu_are_one_line(lines, empty_cache, toolkit, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 8.6")
    (line,) = lines()
    assert "TORCH_CUDA_ARCH_LIST=8.0;8.6 leaves out" in line and "sm_90" in line


def test_architectures_by_name_are_one_line(lines, empty_cache, toolkit, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX;Hopper")
    (line,) = lines()
    assert "TORCH_CUDA_ARCH_LIST=9.0+PTX;Hopper: 'Hopper' is not of the form 9.0" in line


def test_a_cache_that_cannot_be_written_is_one_line(lines, toolkit, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    (line,) = lines()
    assert f"{tmp_path / 'file'}" in line and "Not a directory" in line


def put_library(folder: Path, kind: str = "cuda", **changes: object) -> None:
    """A library that is no library, with a record that fits but for `changes`."""
    built = {"cuda": ("9.0", f"CUDA {CUDA}"), "cpu": (building.machine(), "c++")}[kind]
    library = b"this is no library"
    record = Record(building.source_hash(kind), *built, torch.__version__, 1.0, len(library))
    folder.mkdir(parents=True)
    (folder / f"library_{kind}.so").write_bytes(library)
    (folder / f"library_{kind}.json").write_text(json.dumps({**asdict(record), **changes}))


@pytest.mark.parametrize("target", [HOPPER, Cpu()], ids=lambda target: target.kind)
def test_a_broken_library_is_an_error(target, lines, empty_cache):
    put_library(empty_cache / f"{building.source_hash(target.kind)}-broken", target.kind)
    with pytest.raises(OSError, match=rf"remove .*-broken to .*library_{target.kind}\.so"):
        lines(target)


@pytest.mark.parametrize("target", [HOPPER, Cpu()], ids=lambda target: target.kind)
@pytest.mark.parametrize(
    ("ending", "content", "told"),
    [
        (".so", b"this", "has 4 bytes instead of 18"),
        (".so", None, "has 0 bytes instead of 18"),
        *((".json", text, "is no record of a library") for text in (b"", b"{}", b"[]", b"\xff")),
    ],
)
def test_a_damaged_library_is_an_error(target, ending, content, told, lines, empty_cache):
    folder = empty_cache / f"{building.source_hash(target.kind)}-damaged"
    put_library(folder, target.kind)
    path = folder / f"library_{target.kind}{ending}"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for ask in (lines, lambda target: extension.status(target.kind)):
        with pytest.raises(OSError, match=rf"{told}.*remove .*-damaged to .*{path.name}"):
            ask(target)


def test_an_install_of_an_older_version_is_passed_over(empty_cache, tmp_path, monkeypatch):
    """Its sources are others, and so may its record be."""
    building.source_hash("cpu")  # of the real sources, and remembered
    monkeypatch.setattr(building, "HERE", tmp_path)
    (tmp_path / "library_cpu.json").write_text('{"sources": "0", "seconds": 1.0}')
    assert list(extension.libraries("cpu")) == []


def test_a_library_that_does_not_load_is_told_by_the_command_line(empty_cache):
    put_library(empty_cache / f"{building.source_hash('cpu')}-broken", "cpu")
    command = [sys.executable, "-m", "kogpt", "generate", "--max-new-tokens", "1", "가"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 1
    assert re.fullmatch(r"kogpt: /\S*library_cpu\.so: cannot be loaded: .*\n", done.stderr)


@pytest.mark.parametrize(
    "changes", [{"compiler": "CUDA 9.2"}, {"architectures": "8.0"}, {"sources": "0"}]
)
def test_a_library_of_other_sources_cuda_or_devices_is_not_loaded(
    changes, lines, empty_cache, tmp_path, monkeypatch
):
    put_library(empty_cache / f"{building.source_hash('cuda')}-other", **changes)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert len(lines()) == 1


@pytest.mark.parametrize("changes", [{"architectures": "mips"}, {"sources": "0"}])
def test_a_library_of_other_sources_or_another_processor_is_not_loaded(
    changes, lines, empty_cache, monkeypatch
):
    put_library(empty_cache / f"{building.source_hash('cpu')}-other", "cpu", **changes)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert len(lines(Cpu())) == 1


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("9.0", (9, 0), True),
        ("8.0;8.6;9.0", (8, 9), True),  # machine code runs on later minor versions
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (8, 9), True),
        ("8.0+PTX", (9, 0), False),  # kernels would begin too early there, and not wait
        ("9.0+PTX", (10, 0), True),
        ("8.0;9.0+PTX", (12, 1), True),
        ("9.0a", (9, 0), True),
        ("10.0a", (10, 3), False),
        ("12.0", (12, 1), True),
    ],
)
def test_which_devices_a_library_covers(architectures, capability, runs):
    assert targets.covers(architectures, capability) is runs


@pytest.fixture
def forgotten():
    """Nothing is remembered of the devices, before and after."""
    extension.serves_device.cache_clear()
    yield
    extension.serves_device.cache_clear()


def test_a_process_without_a_gpu_neither_compiles_nor_says_a_word(capfd, monkeypatch, forgotten):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert extension.extension_available() is False
    assert extension.extension_available(torch.device("cuda", 0)) is False
    assert capfd.readouterr() == ("", "")


def test_a_device_is_looked_at_once(monkeypatch, forgotten):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(asked.append("is_available")))
    for _ in range(3):
        extension.extension_available(torch.device("cuda", 0))
    assert len(asked) <= 1  # none on a build of torch without CUDA


def test_whether_there_are_kernels_is_a_constant_of_a_compiled_graph():
    def branch(x):
        return x + 1 if extension.extension_available(torch.device("cuda", 0)) else x - 1

    compiled = torch.compile(branch, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(2)), branch(torch.ones(2)))


def run_setup(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", *(command or ["--version"])],
        env={**os.environ, **environment},
        cwd=ROOT,
        text=True,
        capture_output=True,
    )


def test_an_install_without_toolkit_works_unless_it_is_asked_for_kernels(tmp_path):
    done = run_setup(KOGPT_BUILD_KERNELS="0", CUDA_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    asked = run_setup(KOGPT_BUILD_KERNELS="1", CUDA_HOME=str(tmp_path))
    assert asked.returncode != 0 and "cannot be compiled: " in asked.stderr.splitlines()[-1]
    alone = run_setup(KOGPT_BUILD_KERNELS="cpu", CUDA_HOME=str(tmp_path))
    assert alone.returncode == 0, alone.stderr
    unclear = run_setup(KOGPT_BUILD_KERNELS="false")
    assert unclear.returncode != 0
    assert unclear.stderr.splitlines()[-1] == "KOGPT_BUILD_KERNELS=false: it must be 0, 1 or cpu"


def test_a_source_that_is_gone_is_not_installed_from_an_older_build(tmp_path):
    gone = tmp_path / "kogpt" / "kernels" / "csrc" / "cpu" / "gone.cpp"
    gone.parent.mkdir(parents=True)
    gone.touch()
    done = run_setup("-q", "build_py", "--build-lib", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not gone.exists() and (gone.parent / "plain.cpp").exists()


def test_importing_compiles_nothing(package):
    assert package.start_code("import kogpt.kernels").communicate() == ("", "")
    assert not package.cache.exists()


# --- the processor's kernels ---


@pytest.fixture
def own_compiler(package, tmp_path) -> Path:
    """What CXX names: a program in a folder with a blank, and of a name in no ASCII; it counts."""
    path = tmp_path / "my compilers" / "컴파일러"
    path.parent.mkdir()
    half = r"printf 'mine \\355\\225\\n'"  # of a syllable
    version = f'[ "$2" = --version ] && {half} && exit'
    write_program(path, f'#!/bin/sh\n{version}\necho "$@" >> {tmp_path}/calls\nexec c++ "$@"\n')
    package.environment["CXX"] = f"'{path}' -pipe"
    return path


def test_the_kernels_of_the_processor_are_compiled_once_by_the_compiler_of_cxx(
    package, own_compiler, tmp_path
):
    out, err = package.ask(Cpu())
    assert out.startswith("True") and err.count("\n") == 1, err
    assert "compiling the CPU kernels" in err and "once" in err
    (library,) = package.cache.glob("*/library_cpu.so")
    record = json.loads(library.with_suffix(".json").read_text())
    assert record["architectures"] == building.machine() and record["seconds"] > 0
    assert record["compiler"].startswith("mine ") and record["size"] == library.stat().st_size
    compiled = (tmp_path / "calls").read_text()
    assert "bindings.cpp" in compiled and "library_cpu.so" in compiled  # compiled and linked
    package.source("kernel.cu", "int another;")  # of the other library
    assert package.ask(Cpu()) == (out, "")
    assert (tmp_path / "calls").read_text() == compiled and package.compilations() == 0


def test_a_library_owes_nothing_to_flags_locale_or_umask(package):
    for name in ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS"):
        package.environment[name] = "--no-such-flag"
    package.environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    package.cache = package.cache.parents[2] / "캐시" / "kogpt" / "kernels"
    package.environment["XDG_CACHE_HOME"] = str(package.cache.parents[1])
    old = os.umask(0o027)
    code = "from kogpt.kernels import extension as e, targets as t; print(e.load(t.Cpu()))"
    try:
        out, err = package.start_code(code).communicate()
    finally:
        os.umask(old)
    assert out.startswith("True"), err
    (library,) = package.cache.glob("*/library_cpu.so")
    assert library.parent.stat().st_mode & 0o777 == 0o750


def test_a_folder_without_a_record_is_compiled_into_anew(package):
    assert package.ask(Cpu())[0].startswith("True")
    (record,) = package.cache.glob("*/library_cpu.json")
    record.unlink()
    assert package.ask(Cpu())[0].startswith("True") and record.exists()
    assert package.ask(Cpu())[1] == ""


def test_what_a_header_changes_is_compiled_again_without_ninja_too(package, tmp_path):
    """Into a folder that has a library already, as that of an install's earlier build."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("c++", "as", "ld"):
        (tools / name).symlink_to(shutil.which(name))
    package.source("cpu/bindings.cpp", '#include "part.h"\n')
    found = []
    for text in ("extern int one; int one = 1;", "extern int two; int two = 2;"):
        package.source("cpu/part.h", text)
        command = [sys.executable, "-P", package.kernels / "building.py", "cpu", tmp_path / "out"]
        environment = {**package.environment, "PATH": str(tools)}
        subprocess.run(command, env=environment, cwd=package.kernels, check=True)
        found.append((tmp_path / "out" / "library_cpu.so").read_bytes())
    assert found[0] != found[1]


# --- the real ones ---


@pytest.fixture(scope="module", params=["cuda", "cpu"])
def compiled(request, tmp_path_factory) -> Path:
    """A real library; for GPUs of one architecture, which nothing else needs, in a folder here."""
    try:
        if request.param == "cpu":
            return extension.obtain(Cpu()).path
        building.find_toolkit()
    except CannotBuildError as reason:
        pytest.skip(f"needs a compiler: {reason}")
    folder = tmp_path_factory.mktemp("compiled")
    with extension._locked(folder / "lock") as lock:
        extension.run_compiler(HOPPER, folder, "9.0", folder / "failed", lock)
    return folder / "library_cuda.so"


OPS = {
    "cuda": test_gpu.KERNELS,
    "cpu": ("linear",),
}


@pytest.mark.timeout(900)
def test_a_real_library_loads_and_has_every_kernel(compiled):
    kind = compiled.stem.removeprefix("library_")
    code = (
        "import sys, torch, kogpt.kernels\n"
        "torch.ops.load_library(sys.argv[1])\n"
        f"for op in {OPS[kind]}:\n"
        "    found = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        f"    assert found(f'kogpt::{{op}}', '{kind.upper()}'), op\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(compiled)], cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_a_real_library_knows_of_torch_only_what_is_stable(compiled):
    """No C++ symbol of torch, so that the next torch loads it too."""
    names = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", "--demangle", compiled],
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    assert "aoti_torch_" in names
    assert not re.search(r"\b(c10|at|torch)::", names)
