"""One update is what its definition says, whatever it is made of."""

import copy
import weakref

import pytest
import torch
from runs import CLASSES, Losses, Noise, assert_same_weights, loader, sam, sgd, tiny_model, tiny_task, trainer
from torch import nn

import vtkernels as vt
from vtkernels.train import ClassificationTask, NonFiniteLoss, Settings
from vtkernels.train.precision import Precision
from vtkernels.train.update import Update

CPU = torch.device("cpu")


def batches(*sizes: int) -> list:
    data = Noise(sum(sizes))
    return list(zip(data.images.split(sizes), torch.tensor(data.targets).split(sizes), strict=True))


def update(task: nn.Module, optimizer: torch.optim.Optimizer, precision: str = "float32", **settings) -> Update:
    return Update(task.train(), optimizer, Precision(precision, CPU), Settings(**settings))


def by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, images, targets, clip: float | None = None) -> None:
    """What the updates below must come to."""
    model.train()

    def backward() -> None:
        nn.functional.cross_entropy(model(images), targets).backward()

    optimizer.zero_grad()
    backward()
    if hasattr(optimizer, "perturbed"):
        with optimizer.perturbed() as wanted:
            if wanted:
                backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("optimizer", [sgd, sam, lambda module: sam(module, every=2)], ids=["sgd", "sam", "every other"])
def test_update_is_the_loop_one_would_write(optimizer, clip):
    model, task = tiny_model(), tiny_task()
    expected, found = optimizer(model), optimizer(task)
    step = update(task, found, clip_norm=clip)
    for pair in batches(4, 4, 4):
        by_hand(model, expected, *pair, clip)
        result = step([pair], 0.0)
        assert result.images == 4
    assert_same_weights(task.model, model)


def sam_of_sgd(module: nn.Module) -> torch.optim.Optimizer:
    """Adam's first steps are signs of gradients, and would make rounding visible."""
    return vt.optim.SAM(module.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, model=module)


@pytest.mark.parametrize("optimizer", [sgd, sam_of_sgd])
@pytest.mark.parametrize("sizes", [(4, 4), (4, 2, 3)])
def test_accumulation_is_one_large_batch(optimizer, sizes):
    parts, whole = tiny_task(), tiny_task()
    pairs = batches(*sizes)
    large = tuple(torch.cat(column) for column in zip(*pairs, strict=True))
    steps = [update(task, optimizer(task), clip_norm=0.1) for task in (parts, whole)]
    for _ in range(2):
        found, expected = steps[0](pairs, 0.0), steps[1]([large], 0.0)
        torch.testing.assert_close(found.loss, expected.loss)
        torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=1e-4, atol=1e-6)
    for one, other in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_float16_clips_what_is_unscaled():
    """With a scale of 65536, a bound that meant scaled gradients would stop the weights."""
    scaled, plain = tiny_task(), tiny_task()
    (pair,) = batches(8)
    results = [update(task, sgd(task), precision, clip_norm=0.1)([pair], 0.0) for task, precision in ((scaled, "float16"), (plain, "float32"))]
    torch.testing.assert_close(results[0].grad_norm, results[1].grad_norm, rtol=2e-2, atol=0)
    moved = [torch.cat([(a - b).flatten() for a, b in zip(task.parameters(), tiny_task().parameters(), strict=True)]).norm() for task in (scaled, plain)]
    torch.testing.assert_close(moved[0], moved[1], rtol=2e-2, atol=0)
    torch.testing.assert_close(moved[1], torch.tensor(0.1 * 0.1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("optimizer", [sgd, sam])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_like_float32(optimizer, precision):
    curves = []
    for kind in ("float32", precision):
        seen = Losses()
        made = trainer(None, tiny_task(), optimizer, epochs=3, precision=kind, observers=[seen], clip_norm=1.0)
        # from the usual one the scaler would first have to find its way down, leaving out updates
        made.precision.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=kind == "float16")
        made.fit()
        assert {param.dtype for param in made.task.parameters()} == {torch.float32}
        curves.append(torch.tensor(seen.curve))
    torch.testing.assert_close(curves[0], curves[1], rtol=0.05, atol=0.02)
    assert not torch.equal(*curves)


def test_float16_leaves_out_an_update_that_overflows():
    task = tiny_task()
    step = update(task, sgd(task), "float16")
    before = copy.deepcopy(task.state_dict())
    # with this scale the gradients are infinite
    step.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    step(batches(4), 0.0)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert step.precision.scaler.get_scale() == 2.0**119


@pytest.mark.parametrize(("mode", "bound"), [("value", 1e-4), ("adaptive", 1e-3), ("norm", 1e-3)])
def test_ways_of_clipping(mode, bound):
    task = tiny_task()
    seen = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            seen.extend(param.grad.clone() for param in task.parameters())

    optimizer = Watching(task.parameters(), lr=0.1)
    result = update(task, optimizer, clip_norm=bound, clip_mode=mode)(batches(4), 0.0)
    norm = torch.cat([grad.flatten() for grad in seen]).norm()
    assert result.grad_norm > norm
    if mode == "value":
        assert max(grad.abs().max() for grad in seen) == pytest.approx(bound)
    elif mode == "norm":
        assert norm == pytest.approx(bound, rel=1e-3)
    else:
        head = dict(zip([name for name, _ in task.named_parameters()], seen, strict=True))["model.head.weight"]
        assert head.norm() > bound


def test_logits_and_features_do_not_outlive_their_use():
    """Until the end of the backward they would be held beside everything that it makes."""
    latest, found = [], []

    class Watched(ClassificationTask):
        def forward(self, *args):
            outcome = super().forward(*args)
            latest[:] = weakref.ref(outcome.logits), weakref.ref(outcome.features)
            return outcome

    task = Watched(tiny_model())
    # of all gradients the last one
    task.model.patch_embed.proj.weight.register_hook(lambda grad: found.extend(each() for each in latest))
    update(task, sam(task))(batches(4, 4), 0.0)
    # two batches in two passes
    assert found == [None] * 8


def test_the_norm_is_measured_where_it_is_told():
    task = tiny_task()
    step = update(task, sgd(task))
    assert step(batches(4), 0.0).grad_norm is None
    assert step(batches(4), 0.0, measure=True).grad_norm > 0


@pytest.mark.parametrize("optimizer", [sgd, sam])
def test_frozen_parameters_and_their_statistics_stay(optimizer):
    torch.manual_seed(0)
    model = vt.create_model("resnet8_nano", num_classes=CLASSES)
    for name, param in model.named_parameters():
        param.requires_grad_(name.startswith("fc"))
    before = copy.deepcopy(model.state_dict())
    made = trainer(None, ClassificationTask(model), optimizer, train=loader(16, 4), epochs=1, ema_decay=0.5)
    made.fit()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_channels_last_is_for_convolutions():
    model = vt.create_model("resnet8_nano", num_classes=CLASSES)
    seen = []
    model.register_forward_hook(lambda *_: None)
    next(module for module in model.modules() if isinstance(module, nn.Conv2d)).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    trainer(None, ClassificationTask(model), train=loader(8, 4), epochs=1).fit()
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and not seen[0].is_contiguous()
    weights = [param for param in model.parameters() if param.dim() == 4 and param.shape[-1] > 1]
    assert all(param.is_contiguous(memory_format=torch.channels_last) for param in weights)
    assert all(param.is_contiguous() for param in trainer().model.parameters())


def test_gradient_checkpointing_changes_no_loss():
    curves = []
    for switch in (False, True):
        seen = Losses()
        made = trainer(None, tiny_task(drop_path=0.2), grad_checkpointing=switch, epochs=1, observers=[seen])
        assert made.model.grad_checkpointing == switch
        made.fit()
        curves.append(seen.curve)
    assert curves[0] == curves[1]


@pytest.mark.parametrize("optimizer", [sgd, sam])
def test_a_compiled_model_learns_the_same(optimizer, monkeypatch):
    compile_model = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_model(function, backend="aot_eager", **options))
    curves = []
    for switch in (False, True):
        seen = Losses()
        task = tiny_task()
        made = trainer(None, task, optimizer, train=loader(16, 4), epochs=1, compile=switch, observers=[seen])
        made.fit()
        # nothing of it shows in the state
        assert made.task.state_dict().keys() == tiny_task().state_dict().keys()
        curves.append(torch.tensor(seen.curve))
    torch.testing.assert_close(*curves, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_deterministic_switch():
    try:
        trainer(deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def esam(module: nn.Module) -> torch.optim.Optimizer:
    return vt.optim.ESAM(module.parameters(), torch.optim.SGD, lr=0.05, beta=0.6, gamma=0.5, model=module)


def of_each_sample() -> ClassificationTask:
    return ClassificationTask(tiny_model(), nn.CrossEntropyLoss(reduction="none"))


def test_esam_is_the_loop_one_would_write():
    model, task = tiny_model().train(), of_each_sample()
    expected, found = esam(model), esam(task)
    step = update(task, found, clip_norm=0.05)
    for images, targets in batches(8, 8):

        def losses(chosen, images=images, targets=targets):
            some = slice(None) if chosen is None else chosen
            return nn.functional.cross_entropy(model(images[some]), targets[some], reduction="none")

        torch.manual_seed(5)
        loss = expected.both_passes(losses)
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        expected.step()
        torch.manual_seed(5)
        result = step([(images, targets)], 0.0)
        assert torch.equal(result.loss, loss) and result.images == 8
    assert_same_weights(task.model, model)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_esam_trains_and_stops_before_the_weights(precision):
    seen, task = Losses(), of_each_sample()
    made = trainer(None, task, esam, observers=[seen], precision=precision)
    made.precision.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=precision == "float16")
    before = copy.deepcopy(task.state_dict())
    made.fit()
    assert len(seen.curve) == 12 and all(loss < 5 for loss in seen.curve)
    assert not torch.equal(made.model.head.weight, before["model.head.weight"])
    weights = copy.deepcopy(task.state_dict())
    ((images, targets),) = batches(4)
    with pytest.raises(NonFiniteLoss):
        made._update([(images * float("inf"), targets)], 0.0)
    assert all(torch.equal(value, weights[name]) for name, value in task.state_dict().items())
    assert all(param.requires_grad for param in task.parameters())


def test_esam_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="ESAM must see the samples of an update as one batch in one process, got accumulate 2"):
        trainer(None, of_each_sample(), esam, accumulate=2)
    with pytest.raises(ValueError, match="tell the loss of each image to ESAM, got one of the batch; try ClassificationTask"):
        trainer(None, tiny_task(), esam).fit()


@pytest.mark.parametrize("kind", ["ASAM", "GSAM", "LookSAM", "FriendlySAM"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_variants_of_sam_train(kind, precision):
    seen = Losses()
    made = trainer(None, tiny_task(), lambda module: getattr(vt.optim, kind)(module.parameters(), torch.optim.SGD, lr=0.05, model=module), observers=[seen])
    made.precision.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=precision == "float16")
    before = copy.deepcopy(made.task.state_dict())
    made.fit()
    assert all(loss < 5 for loss in seen.curve)
    assert not torch.equal(made.model.head.weight, before["model.head.weight"])
