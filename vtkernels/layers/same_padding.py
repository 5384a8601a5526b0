"""TensorFlow's padding."""

from torch import Tensor, nn
from torch.nn import functional as F


class Conv2dSame(nn.Conv2d):
    """A convolution with a square kernel that pads as TensorFlow's "SAME": H rows give ceil(H / stride), whatever the kernel.

    An odd rest of the padding goes below and to the right, so that with a stride the windows lie elsewhere than with torch's padding.
    The padding that it is given is ignored.
    """

    def forward(self, x: Tensor) -> Tensor:
        kernel_size, stride = self.kernel_size[0], self.stride[0]
        margins = []
        for edge in (x.shape[-1], x.shape[-2]):
            margin = max((-(-edge // stride) - 1) * stride + kernel_size - edge, 0)
            margins += [margin // 2, margin - margin // 2]
        return F.conv2d(F.pad(x, margins), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
