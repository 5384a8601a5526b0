"""What the multi-tensor ops refuse: the error says what was expected, what came and what to try, and nothing was written."""

import copy
import re

import pytest
import torch
from multi_tensor import assert_unchanged, bits

from vtkernels._core import testing
from vtkernels._core.op import OPS

ALL = ("sam_square_sum", "sam_perturb_", "sam_restore_", "sgd_step_", "adamw_step_")
WITH_GRADS = ("sam_square_sum", "sam_perturb_", "sgd_step_", "adamw_step_")
WITH_BACKUPS = ("sam_perturb_", "sam_restore_", "sgd_step_", "adamw_step_")
STEPS = ("sgd_step_", "adamw_step_")
WITH_FLAGS = ("sam_perturb_", *STEPS)


def arguments(op: str) -> dict:
    """Right ones: three tensors, the flags given."""
    lists = {name: [torch.ones(3, 5), torch.ones(()), torch.ones(7)] for name in ("params", "grads", "backups", "momentum_buffers", "exp_avgs", "exp_avg_sqs")}
    flags = {"grad_scale": torch.ones(()), "found_inf": torch.zeros(())}
    chosen = {
        "sam_square_sum": ("params", "grads"),
        "sam_perturb_": ("params", "grads", "backups"),
        "sam_restore_": ("params", "backups"),
        "sgd_step_": ("params", "grads", "momentum_buffers", "backups"),
        "adamw_step_": ("params", "grads", "exp_avgs", "exp_avg_sqs", "backups"),
    }[op]
    numbers = {
        "sam_square_sum": {"eta": 0.0},
        "sam_perturb_": {"rho": 0.05, "square_sum": torch.ones((), dtype=torch.float64), **flags},
        "sam_restore_": {},
        "sgd_step_": {"lr": 0.1, "momentum": 0.9, **flags},
        "adamw_step_": {"lr": 0.1, "steps": [torch.zeros(()) for _ in range(3)], **flags},
    }[op]
    return {name: lists[name] for name in chosen} | numbers


def sparse(*shape: int) -> torch.Tensor:
    return torch.zeros(shape).to_sparse()


def first(name: str, value) -> dict:
    return {name: lambda tensors: [value, *tensors[1:]]}


def second(name: str, value) -> dict:
    """The list with another second tensor."""
    return {name: lambda tensors: [tensors[0], value, *tensors[2:]]}


def shorter(name: str) -> dict:
    return {name: lambda tensors: tensors[:2]}


NAN, INF = float("nan"), float("inf")
TO_FLOAT = "must have dtype float16, bfloat16, float32 or float64, got torch.int64; try params[1].float()"
# ops, what is wrong with their arguments (a value, or what makes it of the right one), and what the error says
VALUES = [
    (ALL, {"params": []}, "params must hold at least one tensor, got an empty list; is the model frozen"),
    (ALL, shorter("params"), "must hold a tensor for each of the 2 params, got 3; leave out params"),
    (WITH_GRADS, shorter("grads"), "grads must hold a tensor for each of the 3 params, got 2; leave out params"),
    (WITH_BACKUPS, shorter("backups"), "backups must hold a tensor for each of the 3 params, got 2; "),
    (("sgd_step_",), {"momentum_buffers": []}, "momentum_buffers must hold a tensor for each of the 3 params, got 0; "),
    (("adamw_step_",), shorter("exp_avgs"), "exp_avgs must hold a tensor for each of the 3 params, got 2; "),
    (("adamw_step_",), shorter("exp_avg_sqs"), "exp_avg_sqs must hold a tensor for each of the 3 params, got 2; "),
    (("adamw_step_",), shorter("steps"), "steps must hold a tensor for each of the 3 params, got 2"),
    (WITH_GRADS, second("grads", torch.ones(1)), "grads[1] must have the shape of params[1], [], got [1]"),
    (WITH_BACKUPS, second("backups", torch.ones(2)), "backups[1] must have the shape of params[1], [], got [2]"),
    (ALL, second("params", torch.ones((), device="meta")), "params[1] must be on the device of params[0] (cpu), got meta; call the op once for each"),
    (WITH_GRADS, second("grads", torch.ones((), device="meta")), "grads[1] must be on the device of params[1] (cpu), got meta; try grads[1].to("),
    (WITH_BACKUPS, second("backups", torch.ones((), device="meta")), "backups[1] must be on the device of params[1] (cpu), got meta; "),
    (("sam_perturb_",), {"rho": -0.1}, "rho must be at least 0 and finite, got -0.1; SAM's paper uses 0.05"),
    (("sam_perturb_",), {"rho": NAN}, "rho must be at least 0 and finite, got nan; "),
    (("sam_perturb_",), {"rho": INF}, "rho must be at least 0 and finite, got inf; "),
    (("sam_perturb_",), {"rho": [0.1, -0.1, 0.1]}, "rho must be at least 0 and finite, got -0.1; "),
    (("sam_perturb_",), {"rho": [0.1]}, "rho must be one float or one for each of the 3 params, got 1"),
    (("sam_perturb_",), {"eps": -1e-12}, "eps must be at least 0 and finite, got -1e-12; "),
    (("sam_perturb_",), {"eps": NAN}, "eps must be at least 0 and finite, got nan; "),
    (("sam_perturb_", "sam_square_sum"), {"eta": -1.0}, "eta must be at least 0 and finite, got -1.0"),
    (("sam_perturb_", "sam_square_sum"), {"adaptive": [True]}, "adaptive must be one bool or one for each of the 3 params, got 1"),
    (STEPS, {"lr": -0.1}, "lr must be at least 0 and finite, got -0.1"),
    (STEPS, {"lr": NAN}, "lr must be at least 0 and finite, got nan"),
    (STEPS, {"lr": [0.1, 0.1]}, "lr must be one float or one for each of the 3 params, got 2"),
    (STEPS, {"weight_decay": -0.1}, "weight_decay must be at least 0 and finite, got -0.1"),
    (("sgd_step_",), {"momentum": -0.1}, "momentum must be at least 0 and below 1, got -0.1; 0.9 is usual"),
    (("sgd_step_",), {"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0; "),
    (("sgd_step_",), {"momentum": NAN}, "momentum must be at least 0 and below 1, got nan; "),
    (("sgd_step_",), {"momentum": 0.0, "nesterov": True}, "momentum must be positive with nesterov, got 0.0; 0.9 is usual"),
    (("adamw_step_",), {"betas": (0.9, 1.0)}, "betas must be at least 0 and below 1, got 1.0; (0.9, 0.999) is usual"),
    (("adamw_step_",), {"betas": (-0.1, 0.9)}, "betas must be at least 0 and below 1, got -0.1; "),
    (("adamw_step_",), {"betas": (NAN, 0.9)}, "betas must be at least 0 and below 1, got nan; "),
    (("adamw_step_",), {"eps": -1.0}, "eps must be at least 0 and finite, got -1.0"),
    (WITH_FLAGS, {"found_inf": torch.ones((), device="meta")}, "found_inf must be on the device of the params (cpu), got meta; try found_inf.to("),
    (WITH_FLAGS, {"grad_scale": torch.ones((), device="meta")}, "grad_scale must be on the device of the params (cpu), got meta; "),
    (ALL, {"backend": "fast"}, "backend must be one of auto, "),
]
TYPES = [
    (ALL, {"params": torch.ones(3)}, "params must be a list of tensors, got Tensor; try list(params) or [params]"),
    (ALL, {"params": iter}, "params must be a list of tensors, got list_iterator; try list(params)"),
    (ALL, second("params", None), "params[1] must be a tensor, got NoneType"),
    (ALL, second("params", 1.0), "params[1] must be a tensor, got float"),
    (WITH_GRADS, {"grads": torch.ones(3)}, "grads must be a list of tensors, got Tensor; "),
    (WITH_GRADS, second("grads", None), "grads[1] must be a tensor, got NoneType; leave out params without a gradient everywhere"),
    (ALL, second("params", torch.ones((), dtype=torch.int64)), f"params[1] {TO_FLOAT}"),
    (WITH_GRADS, second("grads", torch.ones((), dtype=torch.bfloat16)), "grads[1] must have the dtype of its parameter, torch.float32, got torch.bfloat16; "),
    (
        WITH_BACKUPS,
        second("backups", torch.ones((), dtype=torch.float64)),
        "backups[1] must have the dtype of its parameter, torch.float32, got torch.float64; ",
    ),
    (ALL, second("params", torch.ones((), dtype=torch.complex64)), "params[1] must be real, got torch.complex64; keep complex parameters as "),
    (WITH_GRADS, second("grads", torch.ones((), dtype=torch.complex64)), "grads[1] must be real, got torch.complex64; "),
    (ALL, first("params", sparse(3, 5)), "params[0] must be dense, got torch.sparse_coo; "),
    (WITH_GRADS, first("grads", sparse(3, 5)), "grads[0] must be dense, got torch.sparse_coo; build nn.Embedding with sparse=False"),
    (("sam_perturb_",), {"rho": "0.05"}, "rho must be a float or a list of them, got '0.05'"),
    (("sam_perturb_",), {"rho": None}, "rho must be a float or a list of them, got None"),
    (("sam_perturb_",), {"rho": torch.tensor(0.5)}, "rho must be a float or a list of them, got tensor(0.5000)"),
    (("sam_perturb_",), {"square_sum": torch.ones(())}, "square_sum must be one float64 on cpu, got torch.float32 [] on cpu; pass what"),
    (("sam_perturb_",), {"square_sum": 1.0}, "square_sum must be a tensor, got float; try torch.as_tensor"),
    (WITH_FLAGS, {"grad_scale": 65536.0}, "grad_scale must be a tensor, got float; try torch.as_tensor"),
    (WITH_FLAGS, {"grad_scale": torch.ones(2)}, "grad_scale must be a float32 tensor with one element, got torch.float32 [2]; "),
    (WITH_FLAGS, {"found_inf": True}, "found_inf must be a tensor, got bool; "),
    (WITH_FLAGS, {"found_inf": torch.tensor(False)}, "found_inf must be a float32 tensor with one element, got torch.bool []; "),
    (("adamw_step_",), second("steps", torch.tensor(3)), "steps[1] must be a float32 tensor with one element, got torch.int64 []"),
    (("adamw_step_",), second("steps", 3), "steps[1] must be a tensor, got int"),
]
REFUSED = [
    pytest.param(op, wrong, error, message, id=f"{op}-{message}")
    for error, rows in ((ValueError, VALUES), (TypeError, TYPES))
    for ops, wrong, message in rows
    for op in ops
]


@pytest.mark.parametrize(("op", "wrong", "error", "message"), REFUSED)
def test_refused(op, wrong, error, message):
    given = arguments(op)
    given |= {name: spoil(given.get(name)) if callable(spoil) else spoil for name, spoil in wrong.items()}
    dense = [tensor for tensor in testing.tensors_of(given).values() if tensor.layout == torch.strided and tensor.device.type == "cpu"]
    before = bits(dense)
    with pytest.raises(error, match=re.escape(message)) as caught:
        OPS[op].public(**given)
    assert str(caught.value).startswith(f"{op}: ")
    assert_unchanged(dense, before)


@pytest.mark.parametrize("op", ALL)
def test_right_arguments_are_not_refused(op):
    given = arguments(op)
    OPS[op].public(**given)
    # tuples are lists too, tensors may be leaves, and flags may have a dimension
    given = arguments(op)
    expected = testing.run_case(op, given, "auto")
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    given["params"] = tuple(torch.nn.Parameter(param) for param in given["params"])
    given |= {name: value.view(1) for name, value in given.items() if name in ("grad_scale", "found_inf", "square_sum")}
    found = testing.run_in_place(op, copy.deepcopy(given), "auto")
    assert all(torch.equal(found[name].reshape(value.shape), value) for name, value in expected.items())


def test_backups_that_are_their_parameters_are_refused():
    """They would save nothing: the way back would lead nowhere."""
    for backup in (lambda param: param, lambda param: param.detach(), lambda param: param.data, lambda param: param.view(-1).view(param.shape)):
        given = arguments("sam_perturb_")
        given["backups"][0] = backup(given["params"][0])
        before = bits(given["params"])
        with pytest.raises(ValueError, match=re.escape("sam_perturb_: backups must be tensors of their own, got the memory of params[0] as backups[0]; ")):
            OPS["sam_perturb_"].public(**given)
        assert_unchanged(given["params"], before)
    # without elements there is no memory to share
    OPS["sam_perturb_"].public([torch.ones(0), torch.ones(1)], [torch.ones(0), torch.ones(1)], [torch.ones(0), torch.ones(1)], rho=0.1)
