"""How many neurons a model uses, and what is left of its accuracy when the others go."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vtkernels._core import plots
from vtkernels._core.check import fail
from vtkernels.analysis._model import batches, evaluating
from vtkernels.analysis._progress import progress
from vtkernels.analysis._result import Result
from vtkernels.analysis._subject import SubjectOptions
from vtkernels.layers.activations import activation

METHODS = ("magnitude", "activation", "weights")
_LABELS = {"magnitude": "hidden units of small weights", "activation": "hidden units of small output", "weights": "single small weights"}
_MASK, _VALUES, _SHAPE = "::mask", "::values", "::shape"


@dataclass(frozen=True, kw_only=True)
class Options(SubjectOptions):
    """Options of `sparsity`.

    Attributes:
        shares: of hidden units, or of weights, that are pruned, one after the other.
        methods: what is pruned: hidden units of MLPs by the norm of their weights ("magnitude") or by what they put out ("activation"), which
            makes the layers smaller; or single weights of the whole model by magnitude ("weights"), which makes them sparse.
        save: share at which every pruned model is saved beside the pictures.
    """

    shares: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    methods: tuple[str, ...] = METHODS
    save: float = 0.5


@dataclass
class SparsityResult(Result):
    """
    Attributes:
        active: of each activation, in the order of computation: the share of values above zero.
        shares: of what was pruned.
        accuracy, bytes: of each method: top-1 and the size of the saved weights at each of `shares`.
        whole_bytes: the size of the weights before.
        saved: the pruned models' files, once saved.
    """

    name: ClassVar[str] = "sparsity"
    active: dict[str, float]
    shares: list[float] = field(default_factory=list)
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    bytes: dict[str, list[int]] = field(default_factory=dict)
    whole_bytes: int = 0
    saved: dict[str, str] = field(default_factory=dict)
    models: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def summary(self) -> str:
        lines = [f"{100 * share:5.1f} % active in {name}" for name, share in self.active.items()]
        for method, accuracies in self.accuracy.items():
            steps = zip(self.shares, accuracies, self.bytes[method], strict=False)
            lines += [f"{_LABELS[method]}, {share:.0%} pruned: accuracy {100 * top1:.1f} %, {size / 2**20:.2f} MiB" for share, top1, size in steps]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        content = super().to_json()
        del content["models"]
        return content

    def save(self, folder: str | Path) -> list[Path]:
        files = []
        for method, model in self.models.items():
            files.append(Path(folder) / f"pruned_{method}.safetensors")
            save_pruned(model, files[-1])
            self.saved[method] = files[-1].name
        return super().save(folder) + files

    def draw(self) -> dict[str, Any]:
        count = len(self.active)
        figure, (left, right) = plots.subplots(1, 2, width=12.0, height=max(3.8, 1.4 + 0.22 * count), width_ratios=(1, 1.15))
        left.barh(list(self.active), [100 * share for share in self.active.values()], color=plots.BLUE, height=0.66)
        # from the top down, and no bars as fat as a panel where there are few
        left.set_ylim(max(count, 8) - 0.5, -0.6)
        left.set(xlim=(0, 100), xlabel="values above zero (%)", title="Active neurons, from the input on")
        left.tick_params(axis="y", labelsize=8 if count < 30 else 6)
        left.grid(False, axis="y")
        for (method, accuracies), color, marker in zip(self.accuracy.items(), plots.SERIES, plots.MARKERS, strict=False):
            shares = [100 * share for share in self.shares[: len(accuracies)]]
            last = self.bytes[method][-1] / self.whole_bytes
            right.plot(shares, [100 * top1 for top1 in accuracies], color=color, marker=marker, label=f"{_LABELS[method]} (file: {last:.0%})")
        right.set(xlabel="pruned (%)", ylabel="accuracy (%)", ylim=(0, 103), title="Accuracy after pruning, without further training")
        if self.accuracy:
            right.legend(loc="best", fontsize=9, title="pruned; size of the file at the last point", title_fontsize=9, alignment="left")
        return {self.name: figure}


def run(options: Options) -> SparsityResult:
    unknown = set(options.methods) - set(METHODS)
    if unknown:
        fail("sparsity", "methods", f"be among {', '.join(METHODS)}", ", ".join(sorted(unknown)))
    subject = options.load()
    result = SparsityResult(active={}, complete=False)
    with progress("active neurons", len(subject.loader)) as steps:
        active_share(subject.model, subject.loader, result.active, steps.advance)
    if steps.interrupted:
        if not result.active:
            raise KeyboardInterrupt
        return result
    methods = [method for method in options.methods if method == "weights" or prunable(subject.model)]
    if options.methods and not methods:
        fail("sparsity", "model", "have MLPs of layers fc1 and fc2", f"none in {options.model}", "method 'weights' prunes any model")
    curve(subject.model, subject.loader, options.shares, methods, result)
    if result.complete and options.save > 0:
        with progress("pruned models", len(methods)) as steps:
            for method in methods:
                result.models[method] = prune(subject.model, options.save, method, subject.loader)
                steps.advance(method)
        result.complete = not steps.interrupted
    return result


# active neurons


@torch.no_grad()
def active_share(
    model: nn.Module, loader: Iterable[Any], found: dict[str, float] | None = None, advance: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Share of values above zero after every ReLU, GELU and SiLU of a model in eval mode, over all tokens and images, by the layer's name.

    Fused MLPs do not show their hidden units: those are computed once more. A layer that activates several times has a number behind its name.

    Args:
        found: filled with the shares, and right for the images seen after every batch.
        advance: called after every batch.
    """
    found = {} if found is None else found
    above: dict[str, Tensor] = {}
    count: dict[str, int] = {}

    def note(name: str, values: Tensor) -> None:
        above[name] = above.get(name, 0) + (values > 0).sum()
        count[name] = count.get(name, 0) + values.numel()

    for images, _ in batches(model, loader, "active_share"):
        with evaluating(model), _Activations(model, note):
            model(images)
        if not above:
            fail("active_share", "model", "have ReLU, GELU or SiLU activations", f"none in {type(model).__name__}")
        found |= {name: float(above[name]) / count[name] for name in above}
        advance()
    return found


_ACTIVATIONS = {torch.ops.aten.relu, torch.ops.aten.relu_, torch.ops.aten.gelu, torch.ops.aten.silu, torch.ops.aten.silu_, torch.ops.aten.hardtanh}


class _Activations(TorchDispatchMode):
    """Tells `note` what every activation of a forward pass puts out, under the name of the module that calls it."""

    def __init__(self, model: nn.Module, note: Callable[[str, Tensor], None]):
        super().__init__()
        self.model, self.note = model, note
        self.path: list[str] = []
        self.times: dict[str, int] = {}

    def __enter__(self) -> "_Activations":
        self.handles = []
        for name, module in self.model.named_modules():
            self.handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.path.append(name)))
            self.handles.append(module.register_forward_hook(lambda *_: self.path.pop() and None, always_call=True))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for handle in self.handles:
            handle.remove()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.vtkernels.mlp.default:
            x, w1, b1, _, _, act, *_ = args
            hidden = F.linear(x, w1, b1)
            self._note(hidden if act == "none" else activation(act)(hidden))
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.vtkernels.linear.default and args[3] != "none":
            self._note(out[0])
        elif getattr(func, "overloadpacket", None) in _ACTIVATIONS:
            self._note(out)
        return out

    def _note(self, values: Tensor) -> None:
        name = self.path[-1] if self.path and self.path[-1] else type(self.model).__name__
        self.times[name] = self.times.get(name, 0) + 1
        self.note(name if self.times[name] == 1 else f"{name} ({self.times[name]})", values)


# pruning


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """The MLPs of a model whose hidden units can be taken out: two Linear layers or pointwise convolutions, fc1 and fc2."""
    found = {}
    for name, module in model.named_modules():
        first, second = getattr(module, "fc1", None), getattr(module, "fc2", None)
        linear = isinstance(first, nn.Linear) and isinstance(second, nn.Linear) and first.out_features == second.in_features
        pointwise = _is_pointwise(first) and _is_pointwise(second) and first.out_channels == second.in_channels
        if (linear or pointwise) and isinstance(getattr(module, "norm", None), (nn.Identity, type(None))):
            found[name] = module
    return found


def _is_pointwise(layer: Any) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1


def prune(model: nn.Module, share: float, method: str = "magnitude", loader: Iterable[Any] | None = None) -> nn.Module:
    """A pruned copy; the model itself stays as it is.

    Args:
        share: of the hidden units of every MLP, at least one of which stays, or for "weights" of all weights of layers.
        method: see `Options.methods`.
        loader: images that "activation" looks at.
    """
    if not 0 <= share < 1:
        fail("prune", "share", "be in [0, 1)", share, "0.5 takes every second unit")
    if method not in METHODS:
        fail("prune", "method", f"be one of {', '.join(METHODS)}", repr(method))
    return _pruned(model, share, _scores(model, method, loader))


def curve(
    model: nn.Module, loader: Iterable[Any], shares: Iterable[float], methods: Iterable[str] = METHODS, result: SparsityResult | None = None
) -> SparsityResult:
    """Accuracy and size after pruning, without further training. `result`, if given, is filled step by step."""
    result = result or SparsityResult(active={}, complete=False)
    result.shares = sorted(shares)
    result.whole_bytes = sum(tensor.nbytes for tensor in packed(model).values())
    methods = list(methods)
    if not result.shares or not 0 <= result.shares[0] <= result.shares[-1] < 1:
        fail("sparsity", "shares", "be numbers in [0, 1)", result.shares)
    with progress("pruning", len(methods) * len(result.shares)) as steps:
        for method in methods:
            scores = _scores(model, method, loader)
            accuracies, sizes = result.accuracy.setdefault(method, []), result.bytes.setdefault(method, [])
            for share in result.shares:
                smaller = _pruned(model, share, scores)
                top1, size = accuracy(smaller, loader), sum(tensor.nbytes for tensor in packed(smaller).values())
                accuracies.append(top1)
                sizes.append(size)
                steps.advance(f"{method} {share:.0%}: {top1:.1%}")
    result.accuracy = {method: values for method, values in result.accuracy.items() if values}
    result.complete = not steps.interrupted
    return result


@torch.no_grad()
def accuracy(model: nn.Module, loader: Iterable[Any]) -> float:
    """Top-1 in eval mode."""
    right = count = 0
    with evaluating(model):
        for images, targets in batches(model, loader, "accuracy"):
            right += int((model(images).argmax(-1) == targets).sum())
            count += len(targets)
    return right / count


@torch.no_grad()
def _scores(model: nn.Module, method: str, loader: Iterable[Any] | None) -> dict[str, Tensor]:
    """What each hidden unit of each MLP, or each weight, is worth."""
    if method == "weights":
        return {name: value.abs() for name, value in model.named_parameters() if value.dim() > 1 and _is_layer_weight(model, name)}
    mlps = prunable(model)
    if not mlps:
        fail("prune", "model", "have MLPs of layers fc1 and fc2", f"none in {type(model).__name__}", "method='weights' prunes any model")
    ways_out = {name: module.fc2.weight.flatten(1).norm(dim=0) for name, module in mlps.items()}
    if method == "magnitude":
        return {name: module.fc1.weight.flatten(1).norm(dim=1) * ways_out[name] for name, module in mlps.items()}
    if loader is None:
        fail("prune", "loader", "be given where method is 'activation'", None, "method='magnitude' looks at no image")
    sizes = _mean_hidden_sizes(model, mlps, loader)
    return {name: sizes[name] * ways_out[name] for name in mlps}


def _is_layer_weight(model: nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(model.get_submodule(owner), (nn.Linear, nn.Conv2d))


def _mean_hidden_sizes(model: nn.Module, mlps: dict[str, nn.Module], loader: Iterable[Any]) -> dict[str, Tensor]:
    """[H] of each MLP: mean absolute output of its hidden units."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(mlps, 0)

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            hidden = module.act(module.fc1(args[0])).abs()
            # units are the last axis of tokens, and the second of maps
            hidden = hidden.movedim(1, -1) if isinstance(module.fc1, nn.Conv2d) else hidden
            sums[name] = sums.get(name, 0) + hidden.flatten(0, -2).sum(0, dtype=torch.float64)
            counts[name] += hidden[..., 0].numel()

        return hook

    handles = [module.register_forward_pre_hook(look(name)) for name, module in mlps.items()]
    try:
        with evaluating(model):
            for images, _ in batches(model, loader, "prune"):
                model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums[name] / counts[name] for name in mlps}


@torch.no_grad()
def _pruned(model: nn.Module, share: float, scores: dict[str, Tensor]) -> nn.Module:
    smaller = copy.deepcopy(model)
    mlps = prunable(smaller)
    if set(scores) <= set(mlps):
        for name, score in scores.items():
            keep = max(1, len(score) - int(share * len(score)))
            _keep_units(mlps[name], score.topk(keep).indices.sort().values)
        return smaller
    parameters = dict(smaller.named_parameters())
    everything = torch.cat([score.flatten() for score in scores.values()])
    count = int(share * everything.numel())
    if count:
        threshold = everything.kthvalue(count).values
        for name, score in scores.items():
            parameters[name].masked_fill_(score <= threshold, 0.0)
    return smaller


def _keep_units(mlp: nn.Module, kept: Tensor) -> None:
    first, second = mlp.fc1, mlp.fc2
    first.weight = nn.Parameter(first.weight[kept].clone(), first.weight.requires_grad)
    if first.bias is not None:
        first.bias = nn.Parameter(first.bias[kept].clone(), first.bias.requires_grad)
    second.weight = nn.Parameter(second.weight[:, kept].clone(), second.weight.requires_grad)
    if isinstance(first, nn.Linear):
        first.out_features = second.in_features = len(kept)
    else:
        first.out_channels = second.in_channels = len(kept)


# files


def packed(model: nn.Module) -> dict[str, Tensor]:
    """The model's state. Of tensors that are zero here and there, a bit for each element and the values of the others, if that is less."""
    state = {}
    for name, value in model.state_dict().items():
        other = value != 0
        values = int(other.sum())
        if value.dim() > 1 and values * value.element_size() + value.numel() / 8 < value.nbytes:
            state[name + _MASK] = torch.from_numpy(np.packbits(other.cpu().numpy().ravel()))
            state[name + _VALUES] = value[other].cpu()
            state[name + _SHAPE] = torch.tensor(value.shape)
        else:
            state[name] = value.detach().cpu().contiguous()
    return state


def save_pruned(model: nn.Module, path: str | Path) -> None:
    """Write a pruned model's weights, which `load_pruned` puts back."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # tables that two layers share are written once for each
    Path(path).write_bytes(_safetensors().save({name: value.clone() for name, value in packed(model).items()}))


@torch.no_grad()
def load_pruned(model: nn.Module, path: str | Path) -> nn.Module:
    """Give a model of the original architecture the layers and weights of a pruned one, in place."""
    state, device = _safetensors().load_file(str(path)), next(model.parameters()).device
    for name in [name.removesuffix(_MASK) for name in state if name.endswith(_MASK)]:
        mask, values, shape = (state.pop(name + part) for part in (_MASK, _VALUES, _SHAPE))
        dense = torch.zeros(shape.tolist(), dtype=values.dtype)
        dense[torch.from_numpy(np.unpackbits(mask.numpy(), count=dense.numel()).astype(bool)).view(dense.shape)] = values
        state[name] = dense
    own = model.state_dict().keys()
    if foreign := sorted(own ^ state.keys()):
        fail("load_pruned", "file", f"hold the tensors of {type(model).__name__}", f"others: {', '.join(foreign[:3])}", "which model was pruned?")
    for name, mlp in prunable(model).items():
        units = len(state[f"{name}.fc1.weight" if name else "fc1.weight"])
        if units < len(mlp.fc1.weight):
            _keep_units(mlp, torch.arange(units, device=device))
    model.load_state_dict(state)
    return model


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError("save_pruned: expected safetensors, got no such package; try pip install 'vtkernels[models]'") from None
    return safetensors.torch


__all__ = ["METHODS", "Options", "SparsityResult", "accuracy", "active_share", "curve", "load_pruned", "packed", "prunable", "prune", "run", "save_pruned"]
