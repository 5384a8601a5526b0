"""What all losses promise: gradients that are those of the formula, float32 inside, extreme and empty input, compiling, modules that are the functions."""

import copy
import inspect
import pickle

import pytest
import torch
from loss_goldens import random

from vtkernels import losses
from vtkernels.losses._module import Loss

CLASSES = torch.tensor([2, 0, 3, 2, 1, 3, 0, 1])
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=torch.float64)
HOT = torch.nn.functional.one_hot(CLASSES, 4).double()


def logits(seed=0):
    return random(8, 4, seed=seed)


def soft(seed=3):
    return logits(seed).softmax(1)


# inputs that are differentiable, inputs that are not, keyword arguments
CASES = {
    "cross_entropy": (losses.cross_entropy, [logits()], [CLASSES], {}),
    "cross_entropy soft": (losses.cross_entropy, [logits(), soft()], [], {}),
    "soft_target_cross_entropy": (losses.soft_target_cross_entropy, [logits(), soft()], [], {}),
    "balanced": (losses.balanced_cross_entropy, [logits()], [CLASSES], {"weight": WEIGHT}),
    "balanced soft": (losses.balanced_cross_entropy, [logits(), soft()], [], {"weight": WEIGHT}),
    "label_smoothing": (losses.label_smoothing_cross_entropy, [logits()], [CLASSES], {}),
    "label_smoothing thuml": (losses.label_smoothing_cross_entropy, [logits()], [CLASSES], {"convention": "thuml"}),
    "label_smoothing davda54": (losses.label_smoothing_cross_entropy, [logits(), soft()], [], {"convention": "davda54"}),
    "focal": (losses.focal_loss, [logits()], [CLASSES], {"alpha": WEIGHT}),
    "focal soft": (losses.focal_loss, [logits(), soft()], [], {"gamma": 0.5}),
    "sigmoid_focal": (losses.sigmoid_focal_loss, [logits()], [CLASSES], {"gamma": 1.5}),
    "sigmoid_focal soft": (losses.sigmoid_focal_loss, [logits(), soft()], [], {"reduction": "mean"}),
    "binary": (losses.binary_cross_entropy, [logits()], [CLASSES], {}),
    "binary soft": (losses.binary_cross_entropy, [logits(), soft()], [], {"pos_weight": WEIGHT, "weight": WEIGHT}),
    "asymmetric_multi": (losses.asymmetric_multi_label_loss, [logits(), soft()], [], {}),
    "asymmetric_single": (losses.asymmetric_single_label_loss, [logits()], [CLASSES], {}),
    "divergence": (losses.distillation_divergence, [logits()], [logits(1)], {}),
    "soft_distillation": (losses.soft_distillation_loss, [logits()], [logits(1), CLASSES], {"scaling": "deit"}),
    "hard_distillation": (losses.hard_distillation_loss, [logits()], [logits(1), CLASSES], {}),
    "noisy_student": (lambda a, b, y, p: losses.noisy_student_loss(a, y, b, p), [logits(), logits(1)], [CLASSES, soft()], {}),
    "fixmatch": (lambda a, b, y, w: losses.fixmatch_loss(a, y, w, b, threshold=0.4), [logits(), logits(1)], [CLASSES, logits(2)], {}),
    "region_biased": (losses.region_biased_loss, [soft()], [], {"margin": 0.2}),
    "l1": (losses.l1_loss, [logits(), logits(1)], [], {}),
    "laplace": (losses.laplace_loss, [logits(), logits(1), logits(2)], [], {}),
    "gccs full": (losses.gccs_loss, [random(12, 2)], [torch.arange(12) % 2], {"mean": 3.0}),
    "gccs diagonal": (losses.gccs_loss, [logits()], [CLASSES], {"mean": 3.0, "covariance": "diagonal"}),
    "center": (lambda x, c, y: losses.center_loss(x, y, c), [logits(), random(4, 4, seed=5)], [CLASSES], {}),
    "center distance": (lambda x, c, y: losses.center_loss(x, y, c, normalization="distance"), [logits(), random(4, 4, seed=5)], [CLASSES], {}),
    "island": (lambda x, c, y: losses.island_loss(x, y, c), [logits(), random(4, 4, seed=5)], [CLASSES], {}),
    "sparse_center": (lambda x, c, a, y: losses.sparse_center_loss(x, y, c, a), [logits(), random(4, 4, seed=5), soft()], [CLASSES], {}),
}
every_case = pytest.mark.parametrize("case", CASES)
of_logits = pytest.mark.parametrize("case", [name for name in CASES if name not in ("region_biased",) and not name.startswith("gccs")])


def call(case, change=lambda x: x):
    function, free, fixed, options = CASES[case]
    moved = [change(x) for x in (*free, *fixed)]
    return function(*moved, **{name: change(value) if isinstance(value, torch.Tensor) else value for name, value in options.items()})


def floats(dtype):
    return lambda x: x.to(dtype) if x.is_floating_point() else x


@every_case
def test_gradients(case):
    function, free, fixed, options = CASES[case]
    free = [x.clone().requires_grad_() for x in free]
    assert torch.autograd.gradcheck(lambda *inputs: function(*inputs, *fixed, **options), free)


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(case, dtype):
    value = call(case, floats(dtype))
    assert value.dtype == torch.float32
    exact = call(case, lambda x: floats(torch.float64)(floats(dtype)(x)))
    torch.testing.assert_close(value.double(), exact, rtol=2e-5, atol=2e-5)


@every_case
def test_autocast_changes_nothing(case):
    for dtype in (torch.float32, torch.float64):
        plain = call(case, floats(dtype))
        with torch.autocast("cpu", torch.bfloat16):
            value = call(case, floats(dtype))
        assert value.dtype == dtype and torch.equal(value, plain)


@every_case
def test_no_value_is_waited_for(case):
    """Tensors that have none stand for those of a device that is busy."""
    function, free, fixed, options = CASES[case]
    inputs = [x.to("meta").requires_grad_(x is free[0]) for x in (*free, *fixed)]
    options = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    value = function(*inputs, **options)
    value.backward()
    assert value.shape == () and inputs[0].grad.shape == free[0].shape


@pytest.mark.parametrize("update", ["paper", "counted", "gradient"])
@pytest.mark.parametrize("kind", [losses.CenterLoss, losses.IslandLoss, losses.SparseCenterLoss])
def test_centres_wait_for_no_value(kind, update):
    loss, x = kind(4, 4, update=update).to("meta"), logits().to("meta").requires_grad_()
    loss(x, CLASSES.to("meta"), *[x.detach()] * (kind is losses.SparseCenterLoss)).backward()
    assert x.grad.shape == x.shape


@of_logits
@pytest.mark.parametrize("sign", [1, -1])
def test_large_half_precision_numbers(case, sign):
    function, free, fixed, options = CASES[case]
    extreme = (sign * 1e4 * random(8, 4).sign()).half().requires_grad_()
    others = [floats(torch.float16)(x) for x in (*free[1:], *fixed)]
    value = function(extreme, *others, **{name: floats(torch.float32)(x) if isinstance(x, torch.Tensor) else x for name, x in options.items()})
    (gradient,) = torch.autograd.grad(value, extreme)
    assert value.isfinite() and gradient.isfinite().all()


@every_case
def test_an_empty_batch_costs_nothing(case):
    function, free, fixed, options = CASES[case]
    centers = case in ("center", "center distance", "island", "sparse_center")
    inputs = [x if centers and index == 1 else x[:0] for index, x in enumerate((*free, *fixed))]
    inputs[0] = inputs[0].clone().requires_grad_()
    value = function(*inputs, **options)
    # centres keep their distances from each other
    expected = 10 * losses.island_pairs(free[1]) if case == "island" else torch.zeros_like(value)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert inputs[0].grad.shape == inputs[0].shape


COMPILED = ["cross_entropy", "label_smoothing davda54", "focal", "sigmoid_focal", "binary", "asymmetric_single", "soft_distillation", "gccs full", "island"]


@pytest.mark.parametrize("case", COMPILED)
def test_compiles_without_a_break(case, fresh_compiler):
    function, free, fixed, options = CASES[case]
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*free, *fixed, **options), call(case))


@pytest.mark.parametrize("update", ["paper", "counted", "gradient"])
@pytest.mark.parametrize("kind", [losses.CenterLoss, losses.IslandLoss])
def test_centres_follow_in_a_compiled_loss(kind, update, fresh_compiler):
    plain, x = kind(4, 4, update=update).double(), logits()
    other = copy.deepcopy(plain)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = compiled(theirs, CLASSES)
    torch.testing.assert_close(value, plain(mine, CLASSES))
    for leaf in (theirs, mine):
        (other if leaf is theirs else plain)(leaf, CLASSES).backward()
    torch.testing.assert_close(theirs.grad, mine.grad)
    torch.testing.assert_close(other.centers, plain.centers)


def test_gradients_of_each_sample():
    """By functorch, which reads no values."""
    per_sample = torch.func.vmap(torch.func.grad(lambda z, y: losses.focal_loss(z[None], y[None])))(logits(), CLASSES)
    x = logits().requires_grad_()
    losses.focal_loss(x, CLASSES, reduction="sum").backward()
    torch.testing.assert_close(per_sample, x.grad)


def test_a_class_that_does_not_exist_poisons_a_compiled_loss(fresh_compiler):
    wrong = CLASSES.clone()
    wrong[3] = 7
    for case in ("cross_entropy", "label_smoothing", "focal", "sigmoid_focal", "binary", "asymmetric_single", "gccs diagonal", "center"):
        function, free, _, options = CASES[case]
        assert torch.compile(function, backend="eager")(*free, wrong, **options).isnan(), case


@pytest.mark.parametrize("case", ["cross_entropy", "balanced", "label_smoothing", "focal"])
def test_all_ignored(case):
    function, free, _, options = CASES[case]
    x = free[0].clone().requires_grad_()
    value = function(x, torch.full_like(CLASSES, -100), **options)
    value.backward()
    assert value == 0 and (x.grad == 0).all()


def test_logits_of_minus_infinity_rule_a_class_out():
    x = logits()
    x[:, 0] = -torch.inf
    target, left = CLASSES.clamp(min=1), soft()
    left[:, 0] = 0
    for function in (losses.cross_entropy, losses.focal_loss):
        for y in (target, left):
            leaf = x.clone().requires_grad_()
            value = function(leaf, y)
            value.backward()
            assert leaf.grad.isfinite().all()
            torch.testing.assert_close(value, function(x[:, 1:], y - 1 if y.dim() == 1 else y[:, 1:]))


def test_nan_stays_visible():
    for case in CASES:
        function, free, fixed, options = CASES[case]
        bad = free[0].clone()
        bad[0, 0] = torch.nan
        assert function(bad, *free[1:], *fixed, **options).isnan(), case


MODULES = [value for value in vars(losses).values() if inspect.isclass(value) and issubclass(value, Loss)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_modules_are_their_functions(module):
    loss = module()
    options = {name for name, option in inspect.signature(module.function).parameters.items() if option.kind is option.KEYWORD_ONLY}
    assert set(inspect.signature(module).parameters) == options
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(copied) == repr(loss)
    with pytest.raises(TypeError, match=f"{module.__name__}: its arguments must be among .*, got gama"):
        module(gama=1.0)


def test_weights_of_a_module_are_buffers():
    loss = losses.FocalLoss(alpha=WEIGHT, gamma=1.0)
    assert torch.equal(loss.state_dict()["alpha"], WEIGHT)
    assert "gamma=1.0" in repr(loss) and "alpha=[4]" in repr(loss)
    assert losses.FocalLoss().state_dict() == {}
    torch.testing.assert_close(loss(logits(), CLASSES), losses.focal_loss(logits(), CLASSES, alpha=WEIGHT, gamma=1.0))


def test_each_function_has_a_module():
    functions = {module.function for module in MODULES}
    named = {value for name, value in vars(losses).items() if name.endswith(("_loss", "cross_entropy")) and inspect.isfunction(value)}
    assert {function.__name__ for function in named - functions} == {"center_loss", "island_loss", "sparse_center_loss"}
