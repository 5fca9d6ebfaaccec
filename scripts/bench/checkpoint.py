"""Benchmark of verified checkpoints of Base and Large against torch.save and torch.load of the same tensors.

Run: python scripts/bench/checkpoint.py
This needs 20 GB of disk space in the temporary folder.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from harness import record

from mosaicbert.config.load import load_recipe
from mosaicbert.model.factory import build_model
from mosaicbert.train.checkpoint.format import Checkpoint, read_checkpoint, write_checkpoint

_RECIPES = Path(__file__).parents[2] / "recipes"


def main() -> None:
    for name in ("mosaicbert-base-c4", "mosaicbert-large-c4"):
        model = build_model(load_recipe(_RECIPES / f"{name}.yaml").model)
        weights = {key: value.detach() for key, value in model.state_dict().items()}
        moments = {
            key: {"exp_avg": torch.randn_like(value), "exp_avg_sq": torch.rand_like(value), "step": torch.tensor(1.0)}
            for key, value in model.named_parameters()
        }
        checkpoint = Checkpoint({key: value for key, value in weights.items()}, moments, {"position": {"steps": 1}})
        shape = {"parameters": sum(value.numel() for value in model.parameters())}
        with tempfile.TemporaryDirectory() as scratch:
            folder, pickled = Path(scratch), Path(scratch, "state.pt")

            def write(folder: Path = folder, checkpoint: Checkpoint = checkpoint) -> None:
                write_checkpoint(folder, 1, checkpoint, keep=False)

            def save(pickled: Path = pickled, checkpoint: Checkpoint = checkpoint) -> None:
                torch.save({"model": checkpoint.model, "optimizer": checkpoint.optimizer}, pickled)

            def load(pickled: Path = pickled) -> None:
                torch.load(pickled)

            def read(folder: Path = folder) -> None:
                read_checkpoint(folder / "step-1")

            record(
                "checkpoint",
                f"writing, {name}",
                {"torch.save": save, "mosaicbert": write},
                shape=shape,
                dtype=torch.float32,
                seconds=1.0,
            )
            record(
                "checkpoint",
                f"reading, {name}",
                {"torch.load": load, "mosaicbert": read},
                shape=shape,
                dtype=torch.float32,
                seconds=1.0,
            )
            shutil.rmtree(folder / "step-1")


if __name__ == "__main__":
    main()
