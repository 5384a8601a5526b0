"""What two passes do to a model besides gradients: running statistics, random numbers, the hook it carries."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from sam_problems import bits
from torch import nn

import vtkernels as vt

both_ways = pytest.mark.parametrize("way", ["closure", "block", "steps"])


def normalised() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8, momentum=None), nn.BatchNorm1d(8, track_running_stats=False))


def sam_of(module, **options):
    return vt.optim.SAM(module.parameters(), torch.optim.SGD, **({"lr": 0.0, "rho": 1.0, "model": module} | options))


def step(model, sam, x, way="block", pieces=1):
    def backward():
        for part in x.chunk(pieces):
            model(part).square().sum().backward()

    backward()
    if way == "closure":
        sam.step(backward)
    elif way == "block":
        with sam.perturbed() as wanted:
            if wanted:
                backward()
        sam.step()
    else:
        if sam.first_step(zero_grad=True):
            backward()
        sam.second_step()
    sam.zero_grad()


def buffers(model) -> dict[str, bytes]:
    return {name: bits(buffer) for name, buffer in model.named_buffers()}


@both_ways
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("policy", ["first", "second", "both"])
def test_running_statistics_follow_the_policy(policy, pieces, way):
    model = normalised()
    expected = copy.deepcopy(model)
    sam = sam_of(model, batchnorm=policy)
    start = [param.detach().clone() for param in model.parameters()]
    for _ in range(3):
        x = torch.randn(16, 6)
        if policy in ("first", "both"):
            for part in x.chunk(pieces):
                expected(part)
        if policy in ("second", "both"):
            # with the weights that pass two will see
            twin = copy.deepcopy(model)
            twin_sam = sam_of(twin, model=None)
            for part in x.chunk(pieces):
                twin(part).square().sum().backward()
            twin_sam.first_step()
            expected.load_state_dict({**expected.state_dict(), **dict(twin.named_parameters())})
            for part in x.chunk(pieces):
                expected(part)
            expected.load_state_dict({**expected.state_dict(), **dict(model.named_parameters())})
        step(model, sam, x, way, pieces)
        assert buffers(model) == buffers(expected)
    assert [bits(param) for param in model.parameters()] == [bits(param) for param in start]
    assert model[1].num_batches_tracked == 3 * pieces * (2 if policy == "both" else 1)


@pytest.mark.parametrize("policy", ["first", "second"])
def test_running_statistics_where_no_second_pass_is_wanted(policy):
    model = normalised()
    sam = sam_of(model, batchnorm=policy, every=2)
    step(model, sam, torch.randn(16, 6))
    expected = copy.deepcopy(model)
    x = torch.randn(16, 6)
    expected(x)
    step(model, sam, x)
    assert buffers(model) == buffers(expected)


def test_running_statistics_after_an_error_in_pass_two():
    model = normalised()
    expected = copy.deepcopy(model)
    sam = sam_of(model)
    x = torch.randn(16, 6)
    expected(x)
    model(x).square().sum().backward()
    with pytest.raises(KeyError), sam.perturbed():
        model(torch.randn(16, 6))
        raise KeyError
    assert buffers(model) == buffers(expected)


def test_evaluation_between_steps_saves_nothing():
    model = normalised()
    sam = sam_of(model, batchnorm="second", same_rng=True)
    x = torch.randn(16, 6)
    model.eval()
    model(x)
    model.train()
    with torch.no_grad():
        model(x)
    assert not sam._passes._saved and not sam._passes._rng
    kept = buffers(model)
    step(model, sam, x)
    assert buffers(model) != kept


class DropPath(nn.Module):
    """A residual branch left out for some samples."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Linear(6, 6)
        self.seen = []

    def forward(self, x):
        keep = torch.empty(len(x), 1).bernoulli_(0.5)
        self.seen.append(bits(keep))
        return x + keep * self.branch(x)


@both_ways
@pytest.mark.parametrize("pieces", [1, 3])
def test_same_masks_in_both_passes_forward_by_forward(pieces, way):
    """And afterwards the generator stands where a run with one pass would have left it."""
    model, single = DropPath(), DropPath()
    sam = sam_of(model, same_rng=True)
    x = torch.randn(12, 6)
    for seed in range(3):
        torch.manual_seed(seed)
        step(model, sam, x, way, pieces)
        after = torch.rand(3)
        torch.manual_seed(seed)
        for part in x.chunk(pieces):
            single(part)
        assert torch.equal(after, torch.rand(3))
        assert model.seen[:pieces] == model.seen[pieces:] == single.seen
        model.seen.clear()
        single.seen.clear()


def test_draws_between_the_passes_are_not_repeated():
    model = DropPath()
    sam = sam_of(model, same_rng=True)
    x = torch.randn(12, 6)
    model(x).sum().backward()
    first = torch.rand(3)
    with sam.perturbed():
        model(x).sum().backward()
    assert not torch.equal(torch.rand(3), first)


def test_a_model_is_copied_and_pickled_without_its_optimizer():
    model = normalised()
    sam = sam_of(model, same_rng=True)
    x = torch.randn(16, 6)
    step(model, sam, x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        kept = (len(sam._passes._rng), buffers(model))
        twin(x).sum().backward()
        assert (len(sam._passes._rng), buffers(model)) == kept, "its forwards are nobody's"
        assert not any(hook._passes() for hook in twin._forward_pre_hooks.values())
        twin_sam = sam_of(twin, batchnorm="both")
        step(twin, twin_sam, x)


def test_the_model_does_not_keep_the_optimizer_alive():
    model = normalised()
    sam = sam_of(model)
    x = torch.randn(16, 6)
    step(model, sam, x)
    watched = weakref.ref(sam)
    del sam
    gc.collect()
    assert watched() is None
    model(x).sum().backward()


def test_close_takes_the_hooks_off():
    model = normalised()
    sam = sam_of(model)
    x = torch.randn(16, 6)
    model(x).sum().backward()
    sam.first_step()
    sam.close()
    assert not model._forward_pre_hooks
    assert not any(param._post_accumulate_grad_hooks for param in model.parameters())
    sam.close()


def test_compiled_models_are_watched(fresh_compiler):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    compiled = torch.compile(model, backend="aot_eager")
    sam = sam_of(compiled, same_rng=True)
    expected = copy.deepcopy(model)
    x = torch.randn(16, 6)
    for _ in range(2):
        expected(x)
        step(compiled, sam, x)
    assert torch.allclose(model[1].running_var, expected[1].running_var) and model[1].num_batches_tracked == 2
