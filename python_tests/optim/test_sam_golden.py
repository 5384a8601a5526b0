"""The golden steps of SAM and ASAM through `vt.optim.SAM`, and 100 steps beside the published algorithm."""

import copy

import pytest
import torch
from sam_problems import Golden
from torch import nn

import vtkernels as vt

# loss, norm, loss at the perturbed weights, weights and bias after each of two steps
GOLDEN = {
    "SAM": (
        {"rho": 0.05},
        [
            (1.267449358209284, 3.1510514470535935, 1.4301193370235155),
            (0.20391104300017623, 0.05087093303121537, 0.19350123233826869, 0.22124021933086865, 0.07117868808116684, -0.161230894131186),
            (0.7333311175012613, 3.3784627454429796, 0.9030121750574651),
            (-0.03997113414950632, 0.09356090865990206, 0.21618654689111175, -0.12258315392529272, -0.045308204741886834, -0.2126015075770205),
        ],
    ),
    "ASAM": (
        {"rho": 0.5, "adaptive": True},
        [
            (1.267449358209284, 0.9234939418480673, 1.6902614114545051),
            (0.20820668259916444, 0.04895851320248706, 0.22857806442437892, 0.2634761866450062, 0.08948348656570251, -0.1504513112214718),
            (0.8683587073081793, 0.580452608046447, 1.1359159380612176),
            (-0.06481729831490742, 0.1097897106089359, 0.2987201491053392, 0.03582560373573988, 0.015479261098687592, -0.21335117744097218),
        ],
    ),
    "SAM with coupled decay": (
        {"rho": 0.05, "weight_decay": 0.01},
        [
            None,
            None,
            (0.7323373919410449, 3.3801899575759666, 0.9020990980372551),
            (-0.040505232083463, 0.09373537728086605, 0.21556479315674532, -0.12373584826322924, -0.045568556248541225, -0.212108951413626),
        ],
    ),
}
# torch's own step is taken where one of its implementations is asked for
both_base_steps = pytest.mark.parametrize("base", [{}, {"foreach": True}], ids=["fused", "by itself"])


@both_base_steps
@pytest.mark.parametrize("case", GOLDEN)
def test_golden_steps(case, base):
    golden = Golden()
    options, expected = GOLDEN[case]
    sam = vt.optim.SAM(golden.params, torch.optim.SGD, lr=0.1, momentum=0.9, **options, **base)
    for numbers, weights in zip(expected[::2], expected[1::2], strict=True):
        loss = golden.backward()
        perturbed_loss = sam.step(golden.backward)
        sam.zero_grad()
        if numbers is not None:
            assert (loss.item(), sam.norm.item(), perturbed_loss.item()) == pytest.approx(numbers, rel=0, abs=1e-12)
            assert golden.values() == pytest.approx(weights, rel=0, abs=1e-12)


def published_step(params, base, rho, adaptive, backward):
    """davda54/sam by its description: gradients of pass one stand in `.grad`."""
    moved = [param for param in params if param.grad is not None]
    norm = torch.stack([((param.abs() if adaptive else 1.0) * param.grad).norm() for param in moved]).norm()
    old = [param.detach().clone() for param in moved]
    with torch.no_grad():
        for param in moved:
            param += (param.square() if adaptive else 1.0) * param.grad * (rho / (norm + 1e-12))
    base.zero_grad()
    backward()
    with torch.no_grad():
        for param, before in zip(moved, old, strict=True):
            param.copy_(before)
    base.step()
    base.zero_grad()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(
    ("base", "options"),
    [
        (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}),
        (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.05}),
        (torch.optim.Adam, {"lr": 3e-3, "weight_decay": 1e-3}),
        (torch.optim.RMSprop, {"lr": 1e-3}),
    ],
)
def test_a_hundred_steps_follow_the_published_algorithm(adaptive, base, options, backend):
    """In float32 it may differ from float64 by about what the published loop does."""
    rho = 0.5 if adaptive else 0.05
    x, y = torch.randn(16, 6), torch.randn(16, 3)
    start = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    ends = {}
    for name, dtype in (("ours", torch.float32), ("published", torch.float32), ("exact", torch.float64)):
        model = copy.deepcopy(start).to(dtype)
        params = list(model.parameters())

        def backward(model=model, dtype=dtype):
            (model(x.to(dtype)) - y.to(dtype)).square().mean().backward()

        optimizer = vt.optim.SAM(params, base, rho=rho, adaptive=adaptive, backend=backend, **options) if name == "ours" else base(params, **options)
        for _ in range(100):
            backward()
            if name == "ours":
                optimizer.step(backward)
                optimizer.zero_grad()
            else:
                published_step(params, optimizer, rho, adaptive, backward)
        ends[name] = nn.utils.parameters_to_vector(params).detach().double()
    error = (ends["ours"] - ends["exact"]).norm()
    yardstick = (ends["published"] - ends["exact"]).norm()
    assert error <= 2 * yardstick
    assert (ends["exact"] - nn.utils.parameters_to_vector(start.parameters())).norm() > 0.1
