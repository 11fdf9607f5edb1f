"""The compile gate passes what is sound and names what is not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scale import scaled

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_kernels.py"
ARCHITECTURES = ["86", "80", "89", "90"]

# Kernels with one fault each, launched as a kernel file launches its own.
PLANTED = """
#include "attention.h"
#include "ptx.h"

namespace kogpt {
namespace {

// All that is asked of a kernel.
KOGPT_DEVICE void fast_part(const AttentionParams& p, bool tensor_cores) {
  copy_async(16 * thread_index(), p.q.data, true);
  commit_copies();
  wait_copies<0>();
  sync_threads();
  uint32_t a[4];
  float c[4] = {};
  load_matrices(a, 16 * thread_index());
  if (tensor_cores) mma<Float16>(c, a, a[0], a[1]);
  store_global(p.lse + thread_index(), c[0] + a[0]);
}

// Many values that are all alive at the barrier.
template <int kValues>
KOGPT_DEVICE void hold(const AttentionParams& p) {
  float values[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) values[i] = load_global<float>(p.lse + i * thread_index());
  sync_threads();
#pragma unroll
  for (int i = 0; i < kValues; ++i) store_global(p.lse + i, values[i]);
}

__global__ void __launch_bounds__(128) sound(AttentionParams p) { fast_part(p, true); }

__global__ void __launch_bounds__(128) without_tensor_cores(AttentionParams p) {
  fast_part(p, false);
}

__global__ void __launch_bounds__(1024) spills(AttentionParams p) {
  fast_part(p, true);
  hold<120>(p);
}

__global__ void __launch_bounds__(128) indexes_local_memory(AttentionParams p) {
  fast_part(p, true);
  float values[64];
  for (int i = 0; i < p.T; ++i) values[i] = load_global<float>(p.lse + i);
  for (int i = 0; i < p.T; ++i) store_global(p.lse + i, values[p.S - i]);
}

__global__ void __launch_bounds__(128) too_many_registers(AttentionParams p) {
  fast_part(p, true);
  hold<150>(p);
}

__global__ void __launch_bounds__(128) too_much_shared_memory(AttentionParams p) {
  fast_part(p, true);
}

__global__ void __launch_bounds__(128) never_launched(AttentionParams p) { fast_part(p, true); }

}  // namespace

cudaError_t attention_forward(const AttentionParams& p, cudaStream_t stream) {
  int unused;
  const Grid grid{1, 1, 1};
  launch(sound, grid, 128, 2048, stream, p);
  launch(without_tensor_cores, grid, 128, 2048, stream, p);
  launch(spills, grid, 1024, 16384, stream, p);
  launch(indexes_local_memory, grid, 128, 2048, stream, p);
  launch(too_many_registers, grid, 512, 8192, stream, p);
  launch(too_much_shared_memory, grid, 128, 99 * 1024 + 1, stream, p);
  if (p.T < 0) launch(never_launched, grid, 128, 2048, stream, p);
  return p.D == 128 ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace kogpt
"""


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=1200
    )


def require_nvcc() -> None:
    home = os.environ.get("CUDA_HOME")
    if shutil.which(f"{home}/bin/nvcc" if home else "nvcc") is None:
        pytest.skip("the compile gate needs nvcc, that of CUDA_HOME or of the PATH")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[str], list[dict]]:
    """Exit code, lines and kernels of a check of the planted file."""
    require_nvcc()
    folder = tmp_path_factory.mktemp("planted")
    (folder / "attention_forward.cu").write_text(PLANTED)
    done = check("--arch", "86", "--sources", folder, "--json", folder / "found.json")
    found = json.loads((folder / "found.json").read_text())
    assert done.stderr.splitlines() == [f"check_kernels: {fault}" for fault in found["faults"]]
    return done.returncode, found["faults"], found["kernels"]


def faults_of(name: str, lines: list[str]) -> list[str]:
    """What is said of one kernel, without its name."""
    before = f"attention_forward.cu, sm_86: {name}: "
    return [line.removeprefix(before) for line in lines if line.startswith(before)]


def test_faults_make_the_gate_fail(planted):
    code, lines, _ = planted
    assert code == 1 and lines


def test_a_sound_kernel_beside_them_is_not_blamed(planted):
    assert faults_of("sound", planted[1]) == []


def test_spilled_registers_are_named(planted):
    assert any("registers spilled" in line for line in faults_of("spills", planted[1]))


def test_local_memory_is_named(planted):
    lines = faults_of("indexes_local_memory", planted[1])
    assert "256 bytes of local memory" in lines
    assert any("accesses to local memory" in line for line in lines)
    assert not any("spilled" in line for line in lines)


def test_a_kernel_without_tensor_cores_is_named(planted):
    lines = faults_of("without_tensor_cores", planted[1])
    assert lines == ["no tensor cores in the machine code"]


def test_more_registers_than_a_block_may_have_are_named(planted):
    (line,) = faults_of("too_many_registers", planted[1])
    assert line.endswith("registers a block, of 65536")


def test_more_shared_memory_than_a_block_may_have_is_named(planted):
    lines = faults_of("too_much_shared_memory", planted[1])
    assert lines == ["101377 bytes of shared memory a block, of 101376"]


def test_a_compiler_warning_is_a_fault(planted):
    assert any("warning" in line and "unused" in line for line in planted[1])


def test_a_refused_launch_is_a_fault(planted):
    assert any(line.startswith("sm_86: attention_forward refuses D = 128") for line in planted[1])


def test_what_launches_ask_for_comes_from_the_code_that_launches(planted):
    asked = {kernel["name"]: (kernel["threads"], kernel["shared"]) for kernel in planted[2]}
    assert asked["sound"] == (128, 2048)
    assert asked["spills"] == (1024, 16384)
    assert asked["never_launched"] == (None, None)


def test_a_source_that_does_not_compile_fails(tmp_path):
    require_nvcc()
    (tmp_path / "attention_forward.cu").write_text("nonsense")
    done = check("--arch", "86", "--sources", tmp_path)
    assert done.returncode == 1 and "does not compile" in done.stderr


def test_without_nvcc_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    done = check()
    assert done.returncode == 2
    assert done.stderr == f"check_kernels: no CUDA toolkit: no nvcc in {tmp_path}\n"


@pytest.mark.skipif(scaled(0, 1) == 0, reason=".ci/run compiles them, and KOGPT_TEST_SCALE=full")
@pytest.mark.timeout(1200)
def test_the_kernels_pass():
    require_nvcc()
    done = check("--arch", *ARCHITECTURES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") > 8
