"""Session of a run on several ranks without exports.

torchrun runs it as tests.train.session [STEPS] RECIPE [OVERRIDE ...].
"""

import sys

import torch

from mosaicbert.config.load import load_recipe
from mosaicbert.train.composer import dist
from tests.train.running import train_here


def main(arguments):
    num_steps = int(arguments.pop(0)) if arguments[0].isdecimal() else None
    torch.set_num_threads(1)
    dist.initialize_dist("cpu")
    train_here(load_recipe(arguments[0], arguments[1:]), num_steps)


if __name__ == "__main__":
    main(sys.argv[1:])
