"""The CUDA kernels, compiled for every GPU they are meant for without having one: registers, spills, widths; and that the library loads."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
# what lets 1024 threads or more of a kernel reside in a multiprocessor; AdamW has five arrays to keep in flight, others fewer. Window
# attention's has a multiprocessor for itself, for its shared memory
REGISTERS = {
    "sam_square_sum_kernel": 48, "sam_total_kernel": 64, "sam_norm_kernel": 64, "sam_perturb_kernel": 48, "sam_restore_kernel": 48,
    "sgd_step_kernel": 48, "adamw_corrections_kernel": 48, "adamw_step_kernel": 64,
    "window_attention_large_backward_kernel": 168,
}  # fmt: skip
WALKS = ("sam_perturb_kernel", "sam_restore_kernel", "sgd_step_kernel", "adamw_step_kernel")
ATOMICS = r"\b(ATOMG?|REDG?)\."
LOAD = """
import importlib.util, pathlib, sys, setuptools
setuptools.setup = lambda **arguments: None
spec = importlib.util.spec_from_file_location("native_build", "setup.py")
spec.loader.exec_module(build := importlib.util.module_from_spec(spec))
"""
# `setup.py` builds into a copy of its folder of objects, so that neither that nor the installed library is touched
BUILD = f"""{LOAD}
build.BUILD = pathlib.Path(sys.argv[1])
try:
    build.build_kernels("_native.so", "cuda")
except build.Skip as reason:
    sys.exit(f"skipped: {{reason}}")
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a build with CUDA, and what ptxas said of it."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    folder = tmp_path_factory.mktemp("cuda") / "native"
    objects = ROOT / "build" / "native"
    if objects.exists():
        shutil.copytree(objects, folder, ignore=shutil.ignore_patterns("*.so", "*.cu.o"))
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"NVCC_APPEND_FLAGS": "-Xptxas -v"}
    done = subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True)
    if "skipped: " in done.stderr:
        pytest.skip(done.stderr.rpartition("skipped: ")[2].strip())
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return folder, done.stdout + done.stderr


def test_nvcc_is_found_off_the_path(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "nvcc").chmod(0o755)
    environment = os.environ | {"PATH": "/usr/bin:/bin", "CUDA_HOME": str(tmp_path)}
    code = f"{LOAD}\nprint(build.shutil.which('nvcc'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "bin" / "nvcc"), done.stderr


def test_no_kernel_spills_or_takes_more_registers_than_it_may(build):
    found = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'(.*?)Used (\d+) registers", build[1], re.DOTALL)
    seen, wrong = set(), []
    for symbol, arch, properties, registers in found:
        kernel = next((name for name in REGISTERS if name in symbol), None)
        assert kernel, f"{symbol} has no budget of registers"
        seen.add((kernel, arch))
        if re.search(r"[1-9]\d* bytes (stack frame|spill)", properties):
            wrong.append(f"{kernel} sm_{arch} uses local memory: {properties.strip()}")
        if int(registers) > REGISTERS[kernel]:
            wrong.append(f"{kernel} sm_{arch}: {registers} registers, {REGISTERS[kernel]} allowed")
    assert seen == {(kernel, arch) for kernel in REGISTERS for arch in ARCHITECTURES}
    assert not wrong, "\n".join(wrong)


def functions(library: Path, folder: str) -> list[str]:
    """The machine code of each kernel of an op and architecture, its name first."""
    triton = pytest.importorskip("triton", reason="triton, which brings cuobjdump, is not installed")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    code = subprocess.run([tool, "-sass", library / "_native.so.parts" / folder / "cuda.cu.o"], capture_output=True, text=True)
    assert code.returncode == 0, code.stderr
    return code.stdout.split("Function : ")[1:]


def test_memory_is_moved_sixteen_bytes_at_a_time_and_without_atomics(build):
    found = functions(build[0], "sam")
    assert len(found) == (len(REGISTERS) - 1) * len(ARCHITECTURES)
    for function in found:
        name = function.partition("\n")[0]
        assert not re.search(ATOMICS, function), f"{name} has atomics"
        if any(walk in name for walk in WALKS):
            # in each of the three dtypes
            assert len(re.findall(r"\bLDG\.E\.\S*128", function)) >= 2 and len(re.findall(r"\bSTG\.E\.\S*128", function)) >= 2, f"{name} moves narrow words"


def test_window_attention_runs_on_tensor_cores_with_copies_that_do_not_wait_and_without_atomics(build):
    found = functions(build[0], "window_attention")
    # in two dtypes
    assert len(found) == 2 * len(ARCHITECTURES)
    for function in found:
        name = function.partition("\n")[0]
        assert not re.search(ATOMICS, function), f"{name} has atomics"
        # q, k, v, the output and its gradient, and of the statistics two
        assert len(re.findall(r"\bLDGSTS\.E\.\S*128", function)) >= 5, f"{name} waits for its rows"
        # 28 products of 16 x 16 a pair of tiles in the two passes, three pairs unrolled, masked or not
        assert len(re.findall(r"\bHMMA\.16816\.F32", function)) == 28 * 3 * 2, f"{name} has other products"


def test_the_library_loads_without_a_gpu_and_its_cpu_kernels_run(build):
    code = """
import sys, torch
torch.ops.load_library(sys.argv[1])
for op in ("sam_square_sum", "sam_perturb", "sam_restore", "sgd_step", "adamw_step", "window_attention_large_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"vtkernels_native::{op}", "CUDA"), op
params, backups = [torch.zeros(5)], [torch.ones(5)]
torch.ops.vtkernels_native.sam_restore(params, backups)
assert torch.equal(params[0], backups[0])
"""
    done = subprocess.run([sys.executable, "-c", code, build[0] / "_native.so"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_library_needs_nothing_that_the_oldest_torch_lacks(build):
    from python_tests.gpu import abi

    assert abi.missing(abi.needed(build[0] / "_native.so")) == []


# types by name; a list of flags crosses the stable ABI as integers
SCHEMAS = """
import json, sys, torch
import vtkernels
torch.ops.load_library(sys.argv[1])
def arguments(op):
    kinds = [str(a.type).replace("bool[]", "int[]").replace("List[bool]", "List[int]") for a in op.default._schema.arguments]
    return [(a.name, kind, bool(a.alias_info and a.alias_info.is_write)) for a, kind in zip(op.default._schema.arguments, kinds)]
for name in ("sam_square_sum", "sam_perturb_", "sam_restore_", "sgd_step_", "adamw_step_"):
    python = arguments(getattr(torch.ops.vtkernels, name))
    native = arguments(getattr(torch.ops.vtkernels_native, name.rstrip("_")))
    returns = [(str(r.type), True) for r in getattr(torch.ops.vtkernels, name).default._schema.returns]
    assert python.pop()[0] == "backend", name
    # what the one returns, the other is given to write to
    assert [(kind, writes) for _, kind, writes in native[len(python):]] == returns, (name, native, returns)
    assert native[:len(python)] == python, (name, native, python)
# its backend takes of the op's arguments what it has kernels for, and pairs as two numbers
python = {name: kind for name, kind, _ in arguments(torch.ops.vtkernels.window_attention_backward)}
python |= {"out": "Optional[Tensor]", "window_h": "int", "window_w": "int", "shift_h": "int", "shift_w": "int", "lanes": "int"}
for name, kind, writes in arguments(torch.ops.vtkernels_native.window_attention_large_backward):
    assert name.startswith("d_") if writes else kind == ("Tensor" if name == "out" else python[name]), (name, kind)
"""


def test_native_schemas_are_those_of_the_python_ops(build):
    environment = os.environ | {"VTKERNELS_NATIVE": "0", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", SCHEMAS, build[0] / "_native.so"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_and_cpp_agree_on_the_number_of_tensors():
    from vtkernels.ops.sam import cuda

    source = (ROOT / "csrc" / "sam" / "cuda_table.cuh").read_text()
    assert int(re.search(r"kMaxTensors = (\d+);", source)[1]) == cuda.MAX_TENSORS


def test_python_and_cpp_agree_on_the_windows_of_the_cuda_backward():
    from vtkernels.ops.window_attention import cuda

    source = (ROOT / "csrc" / "window_attention" / "cuda.cu").read_text()
    constants = {name: int(re.search(rf"{name} = (\d+)[,;]", source)[1]) for name in ("kHeadDim", "kTile", "kTiles", "kSharedBytes")}
    assert (constants["kHeadDim"], constants["kTile"] * constants["kTiles"], constants["kSharedBytes"]) == (cuda.HEAD_DIM, cuda.TOKENS, cuda.SHARED_BYTES)


# one that knows its options, but not torch's headers
FAILING_NVCC = "#!/bin/sh\ncase \"$*\" in */csrc/*) echo 'no such builtin' >&2; exit 2;; esac\n"


@pytest.mark.parametrize(("mode", "expected"), [("auto", "CUDA kernels skipped: nvcc fails"), ("cuda", "Skip: nvcc fails")])
def test_nvcc_that_fails_costs_the_cuda_kernels_alone(mode, expected, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").write_text(FAILING_NVCC)
    (tmp_path / "bin" / "nvcc").chmod(0o755)
    # stands for the C++ kernels, which take a minute to compile
    (tmp_path / "bin" / "g++").write_text('#!/bin/sh\nwhile [ $# -gt 1 ]; do [ "$1" = -o ] && echo > "$2"; shift; done\n')
    (tmp_path / "bin" / "g++").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "CUDA_HOME": str(tmp_path), "CXX": str(tmp_path / "bin" / "g++")}
    code = f"{LOAD}\nbuild.BUILD = pathlib.Path({str(tmp_path)!r})\nbuild.build_kernels('_native.so', {mode!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert expected in done.stdout + done.stderr
    assert (tmp_path / "_native.so").exists() == (done.returncode == 0) == (mode == "auto")
