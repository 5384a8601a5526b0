"""TensorFlow's padding: as many windows as pixels over the stride, and an odd rest of padding below and on the right."""

from torch import Tensor, nn
from torch.nn import functional as F


def pad_same(x: Tensor, kernel_size: int, stride: int, value: float = 0.0) -> Tensor:
    """[B, C, H, W] padded so that windows of `kernel_size` at every `stride` give ceil(H / stride) x ceil(W / stride)."""
    margins = []
    for edge in (x.shape[-1], x.shape[-2]):
        margin = max((-(-edge // stride) - 1) * stride + kernel_size - edge, 0)
        margins += [margin // 2, margin - margin // 2]
    return F.pad(x, margins, value=value)


class Conv2dSame(nn.Conv2d):
    """A convolution with square kernels padded as TensorFlow does; the padding it is given is ignored."""

    def forward(self, x: Tensor) -> Tensor:
        x = pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
