"""What `vtkernels tune` may launch gives what the launchers' own choice gives."""

import pytest
import torch

from vtkernels._core import testing, tune, tuned

OPERATIONS = ("adamw_step_", "augmix_loss", "class_attention", "drloc_pairs", "pooled_attention", "talking_heads_attention", "window_attention")


@pytest.mark.parametrize("op", OPERATIONS)
def test_candidates_change_no_result(op):
    # small, but with something to compute
    inputs = min((case.inputs(torch.float32) for case in testing.cases(op) if "empty" not in case.name), key=lambda inputs: abs(numbers(inputs) - 1000))
    with tuned.questions() as asked:
        truth = testing.run_case(op, inputs, "triton")
    questions = {question[:3]: question for question in asked}
    assert questions
    for question in questions.values():
        # the smallest and the largest tiles; warps and stages are nothing to the interpreter
        candidates = sorted(question.candidates(question.default), key=lambda plan: tuple(value or 0 for value in plan))
        for parameters in (candidates[0], candidates[-1]):
            said = []
            assert tune._is_right(op, inputs, question, parameters, truth, said.append), said


def numbers(inputs: testing.Inputs) -> int:
    return sum(tensor.numel() for tensor in testing.tensors_of(inputs).values())
