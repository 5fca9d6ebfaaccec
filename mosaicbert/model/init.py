"""Weight initialization of BERT (Devlin et al. 2019, arXiv:1810.04805)."""

from torch import nn


def init_module(module: nn.Module, std: float) -> None:
    """Initialize the parameters of one module, without those of its submodules.

    Weights of linear layers and embeddings are drawn from a normal distribution with mean 0, biases are set to 0, and
    LayerNorm weights to 1. Modules of other types are not changed.

    Args:
        module: Module to initialize in place.
        std: Standard deviation of the normal distribution.
    """
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, mean=0.0, std=std)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        nn.init.zeros_(module.bias)
