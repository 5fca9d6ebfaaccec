"""Score of masked language models without fine-tuning, on the minimal pairs of BLiMP: `mosaicbert blimp`.

Sources: BLiMP, Warstadt et al. 2020, TACL 8, arXiv:1912.00582. Pseudo-log-likelihood, Salazar et al. 2020,
arXiv:1910.14659, with the correction within words of Kauf and Ivanova 2023, arXiv:2305.10588.
"""
