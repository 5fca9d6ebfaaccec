"""Whether masked-language models have learned to look a word up elsewhere in their input, which two sentences need.

    python scripts/copying.py STORE RUN [RUN ...]

Half of the input is held-out text of STORE with 15% of its words masked. Behind it stands, in turn, another text; that
same text with the same words masked, which shows its topic; and that text whole. A model that can look up finds each
masked word in the last, and its loss falls to almost nothing; for one that cannot, the last is little better than the
second. The output has a line per run.
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

from mosaicbert.data.prepare.sources import VALIDATION
from mosaicbert.data.store import TokenStore
from mosaicbert.train.run_folder import RunFolder, describe_environment, newest_export

_NUM_TEXTS = 1_000
_LENGTH = 60  # tokens of a text; two of them and three special tokens are within the 128 of the CPU recipes
_MASK_RATE = 0.15
_BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, help="folder of the token store that the runs were trained on")
    parser.add_argument("runs", type=Path, nargs="+", help="their folders")
    parser.add_argument("--output", type=Path, default=Path("copying.jsonl"), help="it is written anew")
    asked = parser.parse_args()
    texts = read_texts(asked.store)
    lines: list[dict[str, Any]] = []
    for path in asked.runs:
        run = RunFolder(path)
        result, export = json.loads(run.result.read_text()), newest_export(run)
        losses = measure(export, texts)
        print(f"{path.name}: " + ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()), flush=True)
        lines.append({"run": path.name, "tokens": result["tokens"], "eval_loss": result["eval_loss"], **losses})
    common = {"num_texts": len(texts), "environment": describe_environment(), "date": date.today().isoformat()}
    asked.output.write_text("".join(json.dumps(line | common) + "\n" for line in lines))


def read_texts(store: Path) -> Tensor:
    """Beginnings of held-out samples drawn with a fixed seed, without special tokens: (N, _LENGTH) int64."""
    split = TokenStore(store, VALIDATION)
    drawn = split.read(np.random.default_rng(0).permutation(split.num_samples))
    texts = [ids[:_LENGTH].astype(np.int64) for ids in drawn if len(ids) >= _LENGTH][:_NUM_TEXTS]
    return torch.tensor(np.stack(texts))


@torch.no_grad()
def measure(folder: Path, texts: Tensor) -> dict[str, float]:
    """The mean loss of masked words, in nats, by what stands behind the text that they are masked in."""
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    is_masked = torch.rand(texts.shape, generator=torch.Generator().manual_seed(0)) < _MASK_RATE
    first = torch.where(is_masked, tokenizer.mask_token_id, texts)

    def loss(second: Tensor) -> float:
        column = torch.ones_like(texts[:, :1])
        ends = tokenizer.cls_token_id * column, tokenizer.sep_token_id * column
        ids = torch.cat([ends[0], first, ends[1], second, ends[1]], dim=1)
        predicted = [
            model(batch, attention_mask=torch.ones_like(batch)).logits[:, 1 : _LENGTH + 1][chosen]
            for batch, chosen in zip(ids.split(_BATCH), is_masked.split(_BATCH), strict=True)
        ]
        return F.cross_entropy(torch.cat(predicted), texts[is_masked]).item()

    return {
        "loss_other_text": loss(texts.roll(1, dims=0)),
        "loss_same_text_masked": loss(first),
        "loss_same_text": loss(texts),
    }


if __name__ == "__main__":
    main()
