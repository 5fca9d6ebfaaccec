"""Initialisation of the whole network, as in BERT (Devlin et al. 2019, arXiv:1810.04805)."""

from torch import nn


def init_module(module: nn.Module, std: float) -> None:
    """Initialises one module's own parameters: weights normal with `std`, biases zero, norms the identity."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, mean=0.0, std=std)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        nn.init.zeros_(module.bias)
