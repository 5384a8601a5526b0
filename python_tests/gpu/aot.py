"""Build the kernels a call would launch for GPUs that are not there, and read the machine code: registers, spills, loop, opcodes.

What is compiled comes from the launchers themselves, run on `meta` tensors with Triton's launch intercepted, so that
the code looked at here is the code a GPU would run.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}
_TENSOR_CORE = re.compile(r"(HMMA|HGMMA|UTCHMMA)\b")
_LOCAL = re.compile(r"(LDL|STL)\b")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)\s*([^;]*);")
_LABEL = re.compile(r"^\.(L_x_\d+):")

# Of one multiprocessor: shared memory in bytes. Registers (65536), threads (2048) and blocks (32) are alike on all three.
SHARED_MEMORY = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}


@dataclass(frozen=True)
class Build:
    """One kernel as a launcher asked for it."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]

    def compile(self, arch: int) -> "MachineCode":
        return read(triton.compile(self._source(), target=GPUTarget("cuda", arch, 32), options=self.options), arch)

    def parse(self, arch: int = 90) -> None:
        """Through Triton's front end alone, which takes a fraction of a second; it is what stumbles over an argument that has become a constant."""
        target, context = GPUTarget("cuda", arch, 32), ir.context()
        backend = make_backend(target)
        options = backend.parse_options(dict(self.options))
        ir.load_dialects(context)
        backend.load_dialects(context)
        self._source().make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)

    @property
    def ones(self) -> tuple[str, ...]:
        """Arguments that are constants of the build, by Triton's own rule at run time: integers that are 1."""
        return tuple(parameter.name for parameter in self.kernel.params if not parameter.is_constexpr and self._is_one(parameter))

    def _is_one(self, parameter: Any) -> bool:
        value = self.arguments[parameter.name]
        return not parameter.do_not_specialize and type(value) is int and value == 1

    def _source(self) -> ASTSource:
        signature, constants, attributes = {}, {}, {}
        for position, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or self._is_one(parameter):
                signature[parameter.name], constants[(position,)] = "constexpr", value
                continue
            signature[parameter.name] = _type_of(value)
            # what 16 divides is marked so
            if not parameter.do_not_specialize and (isinstance(value, torch.Tensor) or type(value) is int and value % 16 == 0):
                attributes[(position,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, attributes)


@dataclass(frozen=True)
class MachineCode:
    registers: int
    shared: int
    blocks: int  # resident blocks of a multiprocessor
    loop: int  # instructions of the loop that holds the products
    loop_spills: int  # local-memory accesses in it
    products: int  # tensor-core instructions in it
    warps: int
    exponentials: int  # that the block computes in the loop's body, which may hold several iterations
    opcodes: frozenset[str]

    def has(self, pattern: str) -> bool:
        return any(re.match(pattern, opcode) for opcode in self.opcodes)


def builds(launch: Callable[[], Any]) -> list[Build]:
    """The kernels that `launch()` launches on `meta` tensors."""
    with _intercepted() as seen:
        launch()
    return seen


@contextlib.contextmanager
def _intercepted() -> Iterator[list[Build]]:
    seen: list[Build] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        arguments = dict(zip(kernel.arg_names, args, strict=False))
        arguments |= {name: kwargs.pop(name) for name in list(kwargs) if name in kernel.arg_names}
        seen.append(Build(kernel, arguments, kwargs))

    with mock.patch.object(JITFunction, "run", record):
        yield seen


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def read(kernel: Any, arch: int) -> MachineCode:
    """The numbers of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        code = _run("nvdisasm", "-c", file.name)
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
    instructions, labels = _parse(code)
    first, last = _product_loop(instructions, labels)
    body = [opcode for opcode, _ in instructions[first : last + 1]]
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    return MachineCode(
        registers=registers,
        shared=shared,
        blocks=_resident_blocks(arch, registers, shared, warps),
        loop=len(body),
        loop_spills=sum(bool(_LOCAL.match(opcode)) for opcode in body),
        products=sum(bool(_TENSOR_CORE.match(opcode)) for opcode in body),
        warps=warps,
        exponentials=body.count("MUFU.EX2") * 32 * warps,
        opcodes=frozenset(opcode for opcode, _ in instructions),
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def _parse(code: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Opcodes with operands in order, and the index each label stands before."""
    instructions, labels = [], {}
    for line in code.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append((found[1], found[2]))
    return instructions, labels


def _product_loop(instructions: list[tuple[str, str]], labels: dict[str, int]) -> tuple[int, int]:
    """First and last instruction of the longest innermost loop with tensor-core work; everything, where there is none."""
    loops = []
    for index, (opcode, operands) in enumerate(instructions):
        target = re.search(r"L_x_\d+", operands) if opcode.startswith("BRA") else None
        if target and labels.get(target[0], index + 1) <= index:
            start = labels[target[0]]
            if any(_TENSOR_CORE.match(name) for name, _ in instructions[start : index + 1]):
                loops.append((start, index))
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return max(innermost, key=lambda loop: loop[1] - loop[0], default=(0, len(instructions) - 1))


def _resident_blocks(arch: int, registers: int, shared: int, warps: int) -> int:
    # registers are handed out 256 at a time to a warp; each block reserves 1 KiB of shared memory besides its own
    by_registers = 65536 // (-(-registers * 32 // 256) * 256 * warps)
    by_shared = SHARED_MEMORY[arch] // (shared + 1024)
    return min(by_registers, by_shared, 2048 // (32 * warps), 32)
