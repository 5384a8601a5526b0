"""Depthwise separable convolutions: space first, channel by channel, then the channels pixel by pixel."""

from torch import Tensor, nn

from vtkernels.layers.activations import activation


class SeparableConv2d(nn.Module):
    """A depthwise k x k convolution and a pointwise one with nothing between them, without biases, as in Xception and NASNet.

    A full convolution of the same shape has about k^2 times its parameters. `depthwise` makes the first layer: nn.Conv2d, or one that
    pads otherwise.
    """

    def __init__(self, dim: int, out: int, kernel_size: int = 3, stride: int = 1, depthwise: type[nn.Conv2d] = nn.Conv2d):
        super().__init__()
        self.depthwise_conv2d = depthwise(dim, dim, kernel_size, stride, kernel_size // 2, groups=dim, bias=False)
        self.pointwise_conv2d = nn.Conv2d(dim, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv2d(self.depthwise_conv2d(x))


class DepthwiseSeparableConv(nn.Module):
    """MobileNet's block: a depthwise 3x3 and a pointwise convolution, batch normalisation and an activation after each."""

    def __init__(self, dim: int, out: int, stride: int = 1, act: str = "relu6"):
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv_pw = nn.Conv2d(dim, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.act, self.act_name = activation(act), act

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_dw(x)))
        return self.act(self.bn2(self.conv_pw(x)))

    def extra_repr(self) -> str:
        return f"act={self.act_name!r}"
