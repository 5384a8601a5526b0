"""Images cut into patches, each mapped to a token."""

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """[B, C, H, W] -> [B, N, D], patches in row-major order: a convolution whose stride is its kernel.

    The convolution keeps torch's default initialisation, as in the official models.
    """

    def __init__(self, patch_size: int | tuple[int, int], in_channels: int, dim: int, bias: bool = True):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)
