"""Measure the ability of masked language models to copy a masked word from elsewhere in the input.

    python scripts/copying.py STORE RUN [RUN ...]

The first half of the input is validation text of STORE with 15% of its tokens masked. The second half is a different
text, the same text with the same masks, or the same text without masks. The loss of a model that copies is almost zero
for the text without masks. For a model that does not copy, it is about the loss of the text with the same masks. The
output has one line per run.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mosaicbert.data.store import VALIDATION, TokenStore
from mosaicbert.environment import describe_environment
from mosaicbert.train.run_folder import RunFolder, newest_export

_NUM_TEXTS = 1_000
_NUM_TOKENS = 60  # per text; two texts and three special tokens fit into the 128 tokens of the CPU recipes
_MASK_RATE = 0.15
_BATCH_SIZE = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, help="folder of the token store that the runs were trained on")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--output", type=Path, default=Path("copying.jsonl"), help="file to write")
    arguments = parser.parse_args()
    texts = read_texts(arguments.store)
    lines: list[dict[str, Any]] = []
    for path in arguments.runs:
        run = RunFolder(path)
        result, export = json.loads(run.result.read_text()), newest_export(run)
        losses = measure(export, texts)
        print(f"{path.name}: " + ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()), flush=True)
        lines.append({"run": path.name, "tokens": result["tokens"], "eval_loss": result["eval_loss"], **losses})
    common = {"num_texts": len(texts), "environment": describe_environment(), "date": date.today().isoformat()}
    arguments.output.write_text("".join(json.dumps(line | common) + "\n" for line in lines))


def read_texts(store: Path) -> Tensor:
    """Return the first tokens of random validation samples, without special tokens: (N, _NUM_TOKENS) int64."""
    split = TokenStore(store, VALIDATION)
    samples = split.read(np.random.default_rng(0).permutation(split.num_samples))
    texts = [ids[:_NUM_TOKENS].astype(np.int64) for ids in samples if len(ids) >= _NUM_TOKENS][:_NUM_TEXTS]
    return torch.tensor(np.stack(texts))


@torch.no_grad()
def measure(folder: Path, texts: Tensor) -> dict[str, float]:
    """Return the mean loss of the masked tokens in nats, by the second half of the input."""
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    is_masked = torch.rand(texts.shape, generator=torch.Generator().manual_seed(0)) < _MASK_RATE
    first = torch.where(is_masked, tokenizer.mask_token_id, texts)

    def loss(second: Tensor) -> float:
        column = torch.ones_like(texts[:, :1])
        cls, sep = tokenizer.cls_token_id * column, tokenizer.sep_token_id * column
        input_ids = torch.cat([cls, first, sep, second, sep], dim=1)
        logits = [
            model(batch, attention_mask=torch.ones_like(batch)).logits[:, 1 : _NUM_TOKENS + 1][masked]
            for batch, masked in zip(input_ids.split(_BATCH_SIZE), is_masked.split(_BATCH_SIZE), strict=True)
        ]
        return F.cross_entropy(torch.cat(logits), texts[is_masked]).item()

    return {
        "loss_other_text": loss(texts.roll(1, dims=0)),
        "loss_same_text_masked": loss(first),
        "loss_same_text": loss(texts),
    }


if __name__ == "__main__":
    main()
