"""Error messages of one shape: what was expected, what came, what to try."""

import math
from typing import Any, NoReturn

import torch


def fail(op: str, subject: str, expected: str, got: Any, hint: str = "", error: type[Exception] = ValueError) -> NoReturn:
    """Raise `error` as "op: subject must be expected, got got; hint"."""
    tail = f"; {hint}" if hint else ""
    raise error(f"{op}: {subject} must {expected}, got {got}{tail}")


COMPUTED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_tensor(op: str, name: str, value: Any, dim: int | None = None, layout: str = "") -> None:
    if not isinstance(value, torch.Tensor):
        fail(op, name, f"be a tensor{layout and ' ' + layout}", type(value).__name__, "try torch.as_tensor", TypeError)
    if value.layout is not torch.strided or value.is_nested:
        got = "a nested tensor" if value.is_nested else value.layout
        fail(op, name, "be dense", got, f"try {name}.to_padded_tensor(0.0)" if value.is_nested else f"try {name}.to_dense()", TypeError)
    if dim is not None and value.dim() != dim:
        fail(op, name, f"have {dim} dimensions {layout}".rstrip(), list(value.shape), f"try {name}.reshape or unflatten")


def check_floating(op: str, name: str, value: torch.Tensor) -> None:
    if value.dtype not in COMPUTED_DTYPES:
        fail(op, name, "have dtype float16, bfloat16, float32 or float64", value.dtype, f"try {name}.float()", TypeError)


def check_shape(op: str, name: str, value: torch.Tensor, shape: tuple[int, ...], hint: str = "") -> None:
    if tuple(value.shape) != tuple(shape):
        fail(op, name, f"have shape {list(shape)}", list(value.shape), hint)


def check_companion(op: str, name: str, value: torch.Tensor, of: str, main: torch.Tensor) -> None:
    """A parameter beside the main tensor: same device; same dtype, or float32 beside a half-precision main tensor."""
    if value.device != main.device:
        fail(op, name, f"be on the device of {of} ({main.device})", value.device, f"try {name}.to({of}.device)")
    allowed = {main.dtype} | ({torch.float32} if main.dtype in (torch.float16, torch.bfloat16) else set())
    if value.dtype not in allowed:
        names = " or ".join(sorted(str(dtype) for dtype in allowed))
        fail(op, name, f"have dtype {names} beside {of} of {main.dtype}", value.dtype, f"try {name}.to({of}.dtype)", TypeError)


def pair(op: str, name: str, value: Any) -> tuple[int, int]:
    """An int or a pair of ints as a pair."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return (value[0], value[1])
    fail(op, name, "be an int or a pair of ints (rows, columns)", repr(value), "try int() on each", TypeError)


def check_share(what: str, name: str, value: float) -> float:
    """A probability or another part of one."""
    if not 0 <= value <= 1:
        fail(what, name, "be from 0 to 1", value, "try 0.5")
    return value


def check_number(op: str, name: str, value: Any, hint: str) -> float:
    """A finite number. Not a tensor: it would get no gradient, and nobody would tell."""
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)) or isinstance(value, bool):
        fail(op, name, "be a number", repr(value), hint, TypeError)
    # not math.isfinite, which torch.compile cannot trace
    if not -math.inf < value < math.inf:
        fail(op, name, "be finite", value, hint)
    return float(value)


def check_dropout(op: str, value: Any) -> None:
    if not isinstance(value, (int, float)):
        fail(op, "dropout_p", "be a number", repr(value), "0 switches dropout off", TypeError)
    if not 0.0 <= value < 1.0:
        fail(op, "dropout_p", "lie in [0, 1)", value, "0 switches dropout off")


def check_bool(op: str, name: str, value: Any) -> None:
    if not isinstance(value, (bool, torch.SymBool)):
        fail(op, name, "be True or False", repr(value), "try bool()", TypeError)


def check_seed(op: str, seed: Any, name: str = "seed") -> None:
    if seed is None:
        return
    if not isinstance(seed, (int, torch.SymInt)):
        hint = "pass None to draw one from torch" if name == "seed" else "try int()"
        fail(op, name, "be an int", repr(seed), hint, TypeError)
    if not -(2**63) <= seed < 2**63:
        fail(op, name, "fit 64 bits with a sign", seed, f"try {name} % 2**63")
