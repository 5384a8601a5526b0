"""Initial values that many families share."""

from torch import nn

# what is left of the standard deviation of a normal distribution cut off at twice that deviation
CUT_OFF = 0.87962566103423978


def truncated_normal_linears(model: nn.Module) -> None:
    """Weights of deviation 0.02 and no bias in every Linear of a model, as in timm."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def xavier_normal(module: nn.Module) -> None:
    """Glorot's normal weights and no bias in every layer; a convolution for patches counts as the Linear layer it is."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_normal_(layer.weight.flatten(1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def lecun_normal(layer: nn.Linear | nn.Conv2d) -> None:
    """Weights of variance 1 / fan-in, cut off at two deviations, and no bias: the default of Flax."""
    std = layer.weight[0].numel() ** -0.5 / CUT_OFF
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)
