"""One sitting of a run on several ranks, without the export; for torchrun: sitting.py [STEPS] RECIPE [OVERRIDE ...]"""

import sys

import torch

from mosaicbert.config.load import load_recipe
from mosaicbert.train.composer import dist
from tests.train.running import train_here


def main(arguments):
    steps = int(arguments.pop(0)) if arguments[0].isdecimal() else None
    torch.set_num_threads(1)
    dist.initialize_dist("cpu")
    train_here(load_recipe(arguments[0], arguments[1:]), steps)


if __name__ == "__main__":
    main(sys.argv[1:])
