"""Losses of numbers instead of classes: L1, and the Laplace likelihood it is a case of."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.losses._input import computed, reduced
from vtkernels.losses._module import Loss


def l1_loss(prediction: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """|prediction - target| of tensors of one shape; the mean is over all numbers, so that of points halves the sum over two coordinates.

    The gradient is 0 where both are equal.
    """
    prediction, target = _pair("l1_loss", prediction, target)
    return reduced("l1_loss", (prediction - target).abs(), reduction)


class L1Loss(Loss):
    """`l1_loss` as a module."""

    function = staticmethod(l1_loss)


def laplace_loss(prediction: Tensor, target: Tensor, scale: Tensor, *, reduction: str = "mean") -> Tensor:
    """|prediction - target| / b + ln(2 b): the negative log-likelihood of a Laplace distribution whose width b the network predicts too.

    b = softplus(scale) + 1e-6. With a constant b it is `l1_loss` but for a factor and a constant.

    Args:
        prediction, target, scale: of one shape.
        reduction: mean over all numbers, sum, or none.
    """
    name = "laplace_loss"
    check.check_tensor(name, "scale", scale)
    check.check_floating(name, "scale", scale)
    prediction, target = _pair(name, prediction, target)
    check.check_shape(name, "scale", scale, tuple(prediction.shape), "one number for each prediction")
    scale = computed(scale)
    # torch's softplus is linear above 20, and ln(1 + e^a) is not quite that in float64
    width = -F.logsigmoid(-scale) + 1e-6
    return reduced(name, (prediction - target).abs() / width + torch.log(2.0 * width), reduction)


class LaplaceLoss(Loss):
    """`laplace_loss` as a module."""

    function = staticmethod(laplace_loss)


def _pair(name: str, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    check.check_tensor(name, "prediction", prediction)
    check.check_floating(name, "prediction", prediction)
    check.check_tensor(name, "target", target)
    check.check_shape(name, "target", target, tuple(prediction.shape), "torch would broadcast it, and compare every prediction with every target")
    if target.device != prediction.device:
        check.fail(name, "target", f"be on the device of prediction ({prediction.device})", target.device, "try target.to(prediction.device)")
    prediction = computed(prediction)
    return prediction, target.to(prediction.dtype)
