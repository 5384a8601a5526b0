"""The native build: one library of kernels and two small extensions, facts and image operations, compiled by ninja. The rest is in pyproject.toml.

VTKERNELS_BUILD=auto  build what this machine can, say what was skipped and why, never fail an install (default)
VTKERNELS_BUILD=none  pure Python, whose wheel is for every platform
VTKERNELS_BUILD=cpu   the CPU kernels, or fail; the extensions if Python's headers are there
VTKERNELS_BUILD=cuda  CPU and CUDA kernels, or fail
"""

import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC, BUILD, PACKAGE = ROOT / "csrc", ROOT / "build" / "native", ROOT / "vtkernels"
LIBRARIES = KERNELS, SYSTEM, IMGOPS = "_native.so", *(name + sysconfig.get_config_var("EXT_SUFFIX") for name in ("_system", "_imgops"))

# every cpu*.cpp is compiled for each that the compiler knows (off x86-64 just the first), and one is chosen at run time; vectors cross no call: no psabi
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c"
ISAS = {"portable": "-Wno-psabi", "avx2": "-mavx2 -mfma -mf16c", "avx512": AVX512, "avx512_bf16": f"{AVX512} -mavx512bf16"}
FLAGS = "-std=c++20 -O3 -fPIC -fvisibility=hidden -fno-math-errno"
# one pass of the front end for all, as no kernel needs what only one architecture has; its PTX is for those to come
CUDA_FLAGS = "-std=c++20 -O3 -t2 -Xcompiler -fPIC,-fvisibility=hidden -gencode 'arch=compute_80,code=[sm_80,sm_86,sm_89,sm_90,sm_100,sm_120,compute_80]'"
# the stable ABI: one binary for every torch from 2.10 on
TORCH_FLAGS = "-DTORCH_STABLE_ONLY -DTORCH_TARGET_VERSION=0x020a000000000000"
# nvcc, where installers leave it off the path
os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), os.path.join(os.environ.get("CUDA_HOME") or "/usr/local/cuda", "bin")))


class Skip(Exception):
    """Why a part cannot be built here, in a sentence."""


def installed(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise Skip(f"{module} is not installed where the build runs; install it and use `pip install --no-build-isolation`")
    return Path(spec.origin).parent


def compiler() -> str:
    if found := os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++"):
        return found
    raise Skip("no C++ compiler was found; install g++ or set CXX")


def known_isas(cxx: str) -> dict[str, str]:
    wanted = {name: flags for name, flags in ISAS.items() if name in ["portable", *os.environ.get("VTKERNELS_ISAS", name).split()]}
    return {name: flags for name, flags in wanted.items() if subprocess.getstatusoutput(f"{cxx} -fsyntax-only -x c++ {os.devnull} {flags}")[0] == 0}


def link(target: str, cxx: str, units: list[tuple[str, Path, str]], libraries: str = "") -> None:
    """Compile each (name, source, flags) that changed, in parallel, and link the objects."""
    installed("ninja")
    from ninja.ninja_syntax import Writer, escape_path

    with open(BUILD / f"{target}.ninja", "w") as file:
        graph = Writer(file)
        graph.rule("cxx", f"{cxx} $flags -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc", description="compile $out")
        graph.rule("nvcc", "nvcc $flags -MD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc", description="compile $out")
        # nvcc knows where its run-time library lies
        graph.rule("link", f"{'nvcc' if any(path.suffix == '.cu' for _, path, _ in units) else cxx} -shared $in {libraries} -o $out", description="link $out")
        for name, source, flags in units:
            graph.build(f"{target}.parts/{name}.o", "nvcc" if source.suffix == ".cu" else "cxx", escape_path(str(source)), variables={"flags": flags})
        graph.build(target, "link", [f"{target}.parts/{name}.o" for name, _, _ in units])
    subprocess.run([sys.executable, "-m", "ninja", f"-C{BUILD}", f"-f{target}.ninja", f"-j{os.environ.get('MAX_JOBS') or os.cpu_count()}"], check=True)


def variants(once: list[Path], per_isa: list[Path], isas: dict[str, str], flags: str) -> list[tuple[str, Path, str]]:
    """Units for `link`: some sources compiled once, knowing which instruction sets there are, and some for each set."""
    units = [(path, "", " ".join(f"-DVTK_HAS_{name.upper()}" for name in isas)) for path in once]
    # portable first: of an inline function that several units emit the linker keeps the first, which must run everywhere
    units += [(path, f".{name}", f"-DVTK_ISA={name} {isa}") for name, isa in isas.items() for path in per_isa]
    return [(f"{path.relative_to(CSRC)}{suffix}", path, f"{FLAGS} -I{shlex.quote(str(CSRC))} {flags} {more}") for path, suffix, more in units]


def build_kernels(name: str, mode: str) -> None:
    torch, cxx, version = installed("torch"), compiler(), importlib.metadata.version("torch")
    if tuple(map(int, version.split(".")[:2])) < (2, 10):
        raise Skip(f"the kernels need torch 2.10 or newer, {version} is installed")
    flags, once = f"{TORCH_FLAGS} -I{shlex.quote(str(torch / 'include'))}", sorted({*CSRC.glob("common/*.cpp"), *CSRC.glob("*/register.cpp")})
    units = variants(once, sorted(CSRC.glob("*/cpu*.cpp")), known_isas(cxx), flags)
    cuda = [(str(path.relative_to(CSRC)), path, f"{CUDA_FLAGS} -DUSE_CUDA {flags} -I{shlex.quote(str(CSRC))}") for path in sorted(CSRC.glob("*/cuda*.cu"))]
    reason, libraries = "nvcc was not found: install CUDA's toolkit or set CUDA_HOME", f"-L{shlex.quote(str(torch / 'lib'))} -ltorch_cpu"
    if mode != "cpu" and shutil.which("nvcc"):
        try:
            return link(name, cxx, cuda + units, libraries)
        except subprocess.CalledProcessError:
            reason = "nvcc fails, see above: is it older than 12.8, or at odds with torch or the C++ compiler?"
    if mode == "cuda":
        raise Skip(reason)
    if mode == "auto":
        print(f"vtkernels: CUDA kernels skipped: {reason}", flush=True)
    link(name, cxx, units, libraries)


def build_extension(name: str, mode: str) -> None:
    cxx, python, imgops, common = compiler(), Path(sysconfig.get_path("include")), CSRC / "imgops", CSRC / "common"
    if not (python / "Python.h").exists():
        raise Skip("Python's headers were not found; install python3-dev")
    flags, isas = f"-I{shlex.quote(str(python))} -I{shlex.quote(str(installed('pybind11') / 'include'))}", known_isas(cxx)
    if name == IMGOPS:
        # a fused multiply-add rounds once where Pillow rounds twice
        once, flags = [imgops / "bindings.cpp", common / "isa.cpp", common / "scratch.cpp"], f"-ffp-contract=off {flags}"
        return link(name, cxx, variants(once, [imgops / "kernels.cpp"], isas, flags))
    torch = importlib.metadata.version("torch") if importlib.util.find_spec("torch") else None
    facts = {"compiler": subprocess.getoutput(f"{cxx} --version").partition("\n")[0], "flags": FLAGS, "isas": isas, "torch": torch}
    facts["commit"] = subprocess.getoutput("git -c safe.directory='*' rev-parse --short=12 HEAD 2>/dev/null") if (ROOT / ".git").exists() else None
    # a unit of its own: a new commit recompiles these two lines, not the bindings
    (info := BUILD / "build_info.cpp").write_text(f'extern const char* const build_info;\nconst char* const build_info = R"json({json.dumps(facts)})json";\n')
    link(name, cxx, [(path.stem, path, f"{FLAGS} {flags}") for path in (info, CSRC / "system" / "bindings.cpp")])


class NativeBuild(build_ext):
    """Setuptools' step, with ninja in the place of its one-by-one compilation."""

    def run(self) -> None:
        mode = os.environ.get("VTKERNELS_BUILD", "auto")
        if mode not in ("auto", "none", "cpu", "cuda"):
            raise SystemExit(f"VTKERNELS_BUILD must be auto, none, cpu or cuda, got {mode!r}")
        for path in (folder := PACKAGE if self.inplace else Path(self.build_lib, "vtkernels"), BUILD):
            path.mkdir(parents=True, exist_ok=True)
        for name, build in zip(LIBRARIES, (build_kernels, build_extension, build_extension), strict=True):
            try:
                if mode == "none":
                    raise Skip("VTKERNELS_BUILD=none")
                build(name, mode)
                # replaced, not written over: a running process may have the old one mapped
                os.replace(shutil.copy2(BUILD / name, folder / f"{name}.new"), folder / name)
            except (Skip, OSError, subprocess.CalledProcessError) as reason:
                (folder / name).unlink(missing_ok=True)
                if mode in ("cpu", "cuda") and (name == KERNELS or not isinstance(reason, Skip)):
                    raise SystemExit(f"vtkernels: {name} cannot be built, and VTKERNELS_BUILD={mode} asks for it: {reason}") from reason
                print(f"vtkernels: {name} skipped: {reason}", flush=True)

    def get_output_mapping(self) -> dict[str, str]:
        return {str(Path(self.build_lib, "vtkernels", name)): str(PACKAGE / name) for name in LIBRARIES if self.inplace and (PACKAGE / name).exists()}


setup(ext_modules=[Extension("vtkernels._system", sources=[])] * (os.environ.get("VTKERNELS_BUILD") != "none"), cmdclass={"build_ext": NativeBuild})
