"""Which optimizer makes the steps, how its rate follows the batch, and sharpness-aware minimisation around it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from vtkernels.recipes._errors import check_between

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer as TorchOptimizer

Groups = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class PerSamples:
    """Rates grow with the batch: they are given for `reference` images.

    Attributes:
        reference: images of a step for which the rate is meant.
        ends: whether the schedule's first and last rates grow as well.
    """

    reference: int = 512
    ends: bool = False

    def factor(self, batch_size: int, world: int) -> float:
        return batch_size / self.reference


@dataclass(frozen=True, kw_only=True)
class PerProcess:
    """Rates grow with the number of processes, whatever their batch.

    Attributes:
        ends: whether the schedule's first and last rates grow as well.
    """

    ends: bool = False

    def factor(self, batch_size: int, world: int) -> float:
        return float(world)


Scaling = PerSamples | PerProcess


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimizers have.

    Attributes:
        lr: learning rate, before `scaling`.
        weight_decay: of what `decayed` says.
        scaling: how the rate follows the size of the run; none takes it as it is.
        decayed: "matrices" leaves out biases, norms and what the model names; "kernels" is big_vision's choice; "all".
        layer_decay: rate of each layer over that of the next one.
        layers: what that counts: the "model"'s own layers; "simmim", where Swin's mergings belong to the block before; "trunk" and head alone.
    """

    lr: float = 1e-3
    weight_decay: float = 0.05
    scaling: Scaling | None = None
    decayed: Literal["matrices", "kernels", "all"] = "matrices"
    layer_decay: float = 1.0
    layers: Literal["model", "simmim", "trunk"] = "model"

    # a rate that suits small batches of small images
    TINY_LR: ClassVar[float] = 2e-3

    def check(self) -> None:
        check_between("optim.lr", self.lr, 0, open_below=True)
        check_between("optim.weight_decay", self.weight_decay, 0)
        check_between("optim.layer_decay", self.layer_decay, 0, 1, open_below=True)

    # in `vtkernels.optim.factory`
    NAME: ClassVar[str]
    # numbers that it keeps for each weight
    STATES: ClassVar[int] = 2

    def options(self) -> dict[str, Any]:
        """What a subclass adds for its constructor."""
        raise NotImplementedError

    def base(self) -> tuple[Callable[..., "TorchOptimizer"], dict[str, Any]]:
        """The class and its options, for an optimizer around it."""
        from vtkernels.optim.factory import optimizer_class

        kind, options = optimizer_class(self.NAME, **self.options())
        return kind, {"lr": self.lr, **options}

    def build(self, groups: Groups) -> "TorchOptimizer":
        from vtkernels.optim.factory import create_optimizer

        return create_optimizer(self.NAME, groups, lr=self.lr, **self.options())

    def groups(self, task: "nn.Module") -> Groups:
        from vtkernels.optim.groups import param_groups, swin_simmim_layers, trunk_and_head

        layers = {"model": None, "simmim": swin_simmim_layers, "trunk": trunk_and_head}[self.layers]
        return param_groups(task, weight_decay=self.weight_decay, decayed=self.decayed, layer_decay=self.layer_decay, layers=layers)

    def tiny(self) -> Self:
        return replace(self, lr=self.TINY_LR, scaling=None)


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Attributes:
        betas: of the moments.
        eps: beside the root.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    NAME: ClassVar[str] = "adamw"

    def options(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps}


@dataclass(frozen=True, kw_only=True)
class Momentum(Optimizer):
    """What gradient descents have in common.

    Attributes:
        momentum: share of the last step that goes on.
        nesterov: looks one step ahead.
    """

    momentum: float = 0.9
    nesterov: bool = False

    STATES: ClassVar[int] = 1
    TINY_LR: ClassVar[float] = 0.05

    def options(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "nesterov": self.nesterov}


@dataclass(frozen=True, kw_only=True)
class SGD(Momentum):
    """Gradient descent with momentum; weight decay is part of the gradient."""

    NAME: ClassVar[str] = "sgd"


@dataclass(frozen=True, kw_only=True)
class SGDW(Momentum):
    """Gradient descent with momentum and decoupled weight decay."""

    NAME: ClassVar[str] = "sgdw"


@dataclass(frozen=True, kw_only=True)
class LAMB(Optimizer):
    """Adam's step, as long as the weights of each tensor allow.

    Attributes:
        betas: of the moments.
        eps: beside the root.
        max_grad_norm: to which the gradients of all tensors together are limited.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    max_grad_norm: float = 1.0

    NAME: ClassVar[str] = "lamb"
    TINY_LR: ClassVar[float] = 1e-2

    def options(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps, "max_grad_norm": self.max_grad_norm}


@dataclass(frozen=True, kw_only=True)
class RMSprop(Optimizer):
    """Gradients over the root of their mean square; weight decay is part of the gradient.

    Attributes:
        alpha: of the running mean.
        momentum: share of the last step that goes on.
        eps: beside the root.
    """

    alpha: float = 0.9
    momentum: float = 0.9
    eps: float = 1e-3

    NAME: ClassVar[str] = "rmsprop"
    TINY_LR: ClassVar[float] = 1e-3

    def options(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "momentum": self.momentum, "eps": self.eps}


Optimizers = AdamW | SGD | SGDW | LAMB | RMSprop


@dataclass(frozen=True, kw_only=True)
class SAM:
    """Sharpness-aware minimisation: two passes a step, the second from perturbed weights.

    Attributes:
        rho: radius of the perturbation.
        adaptive: stretched by the size of each weight.
        eta: added to that size.
        every: two passes in each `every`-th step, one in the others.
        sync: perturb with the "local" gradient of each process, or with the "global" one.
    """

    rho: float = 0.05
    adaptive: bool = False
    eta: float = 0.0
    every: int = 1
    sync: Literal["local", "global"] = "local"

    def build(self, groups: Groups, base: Callable[..., Any], options: dict[str, Any], model: "nn.Module") -> "TorchOptimizer":
        from vtkernels import optim

        radius = {"rho": self.rho, "adaptive": self.adaptive, "eta": self.eta, "every": self.every}
        return optim.SAM(groups, base, **radius, sync=self.sync, model=model, **options)


@dataclass(frozen=True, kw_only=True)
class ASAM:
    """SAM in units of the weights' sizes.

    Attributes:
        rho: radius: 0.5 for CIFAR-10, 1 for CIFAR-100.
        eta: added to each weight's size.
        sync: perturb with the "local" gradient of each process, or with the "global" one.
    """

    rho: float = 0.5
    eta: float = 0.01
    sync: Literal["local", "global"] = "local"

    def build(self, groups: Groups, base: Callable[..., Any], options: dict[str, Any], model: "nn.Module") -> "TorchOptimizer":
        from vtkernels import optim

        return optim.ASAM(groups, base, self.rho, eta=self.eta, sync=self.sync, model=model, **options)


@dataclass(frozen=True, kw_only=True)
class GSAM:
    """SAM that also lowers the gap between the perturbed loss and the loss; its radius follows the learning rate.

    Attributes:
        rho_max, rho_min: radius at the highest and at the lowest learning rate.
        alpha: how much of the gradient across is taken away.
    """

    rho_max: float = 0.6
    rho_min: float = 0.1
    alpha: float = 0.6

    def build(self, groups: Groups, base: Callable[..., Any], options: dict[str, Any], model: "nn.Module") -> "TorchOptimizer":
        from vtkernels import optim

        radii = {"rho_max": self.rho_max, "rho_min": self.rho_min, "alpha": self.alpha, "lr_max": options["lr"]}
        return optim.GSAM(groups, base, **radii, model=model, **options)


@dataclass(frozen=True, kw_only=True)
class LookSAM:
    """SAM whose second pass is made in each k-th step and remembered in the others.

    Attributes:
        rho: radius of the perturbation.
        k: steps from one second pass to the next.
        alpha: how much of the remembered part is added.
    """

    rho: float = 0.1
    k: int = 5
    alpha: float = 0.7

    def build(self, groups: Groups, base: Callable[..., Any], options: dict[str, Any], model: "nn.Module") -> "TorchOptimizer":
        from vtkernels import optim

        return optim.LookSAM(groups, base, self.rho, k=self.k, alpha=self.alpha, model=model, **options)


@dataclass(frozen=True, kw_only=True)
class FriendlySAM:
    """SAM that perturbs along the batch's own part of the gradient.

    Attributes:
        rho: radius of the perturbation.
        sigma: how much of the running mean is taken out.
        lmbda: how much of that mean stays in each step.
        sync: perturb with the "local" gradient of each process, or with the "global" one.
    """

    rho: float = 0.2
    sigma: float = 1.0
    lmbda: float = 0.9
    sync: Literal["local", "global"] = "local"

    def build(self, groups: Groups, base: Callable[..., Any], options: dict[str, Any], model: "nn.Module") -> "TorchOptimizer":
        from vtkernels import optim

        return optim.FriendlySAM(groups, base, self.rho, sigma=self.sigma, lmbda=self.lmbda, sync=self.sync, model=model, **options)


Sharpness = SAM | ASAM | GSAM | LookSAM | FriendlySAM
