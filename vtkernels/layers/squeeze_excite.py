"""Squeeze-and-excitation: channels weighed by what the whole map holds."""

from torch import Tensor, nn

from vtkernels.layers.activations import activation


class SqueezeExcite(nn.Module):
    """Multiplies each channel of [B, C, H, W], or of tokens [B, N, C], by a factor in (0, 1) that two layers compute from all channels' means.

    The layers are 1x1 convolutions with a bias, `hidden` channels (usually dim / 16) between them and a sigmoid at the end. `names` are
    those of the two layers in `state_dict`: SE-ResNets call them `fc1` and `fc2`, EfficientNets `conv_reduce` and `conv_expand`.
    """

    def __init__(self, dim: int, hidden: int, act: str = "relu", names: tuple[str, str] = ("fc1", "fc2")):
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Conv2d(dim, hidden, 1))
        self.add_module(names[1], nn.Conv2d(hidden, dim, 1))
        self.act, self.act_name = activation(act), act

    def forward(self, x: Tensor) -> Tensor:
        reduce, expand = (self.get_submodule(name) for name in self.names)
        tokens = x.dim() == 3
        means = x.mean(1)[:, :, None, None] if tokens else x.mean((2, 3), keepdim=True)
        factors = expand(self.act(reduce(means))).sigmoid()
        return x * (factors.flatten(1)[:, None] if tokens else factors)

    def extra_repr(self) -> str:
        return f"act={self.act_name!r}"
