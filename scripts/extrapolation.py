"""Measure the masked-token loss of models on inputs that are longer than those of their pretraining.

    python scripts/extrapolation.py RUN [RUN ...] --text 'corpus/*/validation-*.jsonl.zst'

Documents of at least eight times the pretraining length are divided into inputs of 1, 2, 4 and 8 times this length. The
text and the masked tokens are the same for all lengths, so the losses differ only by the context. Models with position
embeddings are evaluated up to their number of positions. The output has one line per run and length.
"""

import argparse
import glob
import io
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import zstandard
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

import mosaicbert  # noqa: F401 - registers the model classes
from mosaicbert.config.load import load_recipe
from mosaicbert.environment import describe_environment
from mosaicbert.train.run_folder import RunFolder, newest_export

FACTORS = (1, 2, 4, 8)  # lengths, in units of the pretraining length
_NUM_DOCUMENTS = 200
_MASK_RATE = 0.15
_SPECIAL_TOKENS = 2  # [CLS] and [SEP]
_BATCH_TOKENS = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--text", required=True, help="glob of .jsonl.zst files with a field `text`, not trained on")
    parser.add_argument("--output", type=Path, default=Path("extrapolation.jsonl"), help="file to write")
    arguments = parser.parse_args()
    common = {"environment": describe_environment(), "date": date.today().isoformat()}
    lines: list[dict[str, Any]] = []
    for path in arguments.runs:
        run = RunFolder(path)
        export, result = newest_export(run), json.loads(run.result.read_text())
        tokenizer = AutoTokenizer.from_pretrained(export)
        trained_length = load_recipe(run.recipe).data.max_seq_len
        documents = read_documents(arguments.text, tokenizer, max(FACTORS) * trained_length)
        for length, loss, standard_error in measure(export, tokenizer, documents, trained_length):
            print(f"{path.name}, {length} tokens: {loss:.3f} nats (standard error {standard_error:.3f})", flush=True)
            line = {"run": path.name, "trained_length": trained_length, "length": length, "loss": loss}
            line |= {"standard_error": standard_error, "tokens": result["tokens"], "num_documents": len(documents)}
            lines.append(line | common)
    arguments.output.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_documents(pattern: str, tokenizer: PreTrainedTokenizerBase, longest: int) -> Tensor:
    """Return the beginning of the first documents that are long enough.

    Args:
        pattern: Glob of the files, which are read in turn, one document each.
        tokenizer: Tokenizer of the model.
        longest: Longest input in tokens.

    Returns:
        (N, D) int64 tokens without special tokens, where D is divided by every factor without a remainder.
    """
    content = (longest // max(FACTORS) - _SPECIAL_TOKENS) * max(FACTORS)
    streams = [texts_of(path) for path in sorted(glob.glob(pattern))]
    rows: list[list[int]] = []
    while streams and len(rows) < _NUM_DOCUMENTS:
        for stream in list(streams):
            text = next(stream, None)
            if text is None:
                streams.remove(stream)
                continue
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) >= content:
                rows.append(ids[:content])
    if not rows:
        raise SystemExit(f"{pattern} must have documents of at least {content} tokens, got none. Pass longer texts.")
    return torch.tensor(rows[:_NUM_DOCUMENTS])


def texts_of(path: str) -> Iterator[str]:
    """Yield the texts of a file."""
    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
        for line in io.TextIOWrapper(reader, encoding="utf-8"):
            yield json.loads(line)["text"]


@torch.no_grad()
def measure(
    folder: Path, tokenizer: PreTrainedTokenizerBase, documents: Tensor, trained_length: int
) -> Iterator[tuple[int, float, float]]:
    """Yield the length of the inputs, the mean loss of the masked tokens in nats, and its standard error.

    The standard error is that of the mean over documents.
    """
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    max_length = getattr(model.config, "max_position_embeddings", None)
    is_masked = torch.rand(documents.shape, generator=torch.Generator().manual_seed(0)) < _MASK_RATE
    masked = torch.where(is_masked, tokenizer.mask_token_id, documents)
    num_documents, content = documents.shape
    for factor in FACTORS:
        length = trained_length * factor
        if max_length is not None and length > max_length:
            return
        # Fewer special tokens per document leave room in longer inputs, which is not used.
        chunk = content * factor // max(FACTORS)
        inputs = masked.reshape(-1, chunk)
        column = torch.ones_like(inputs[:, :1])
        inputs = torch.cat([tokenizer.cls_token_id * column, inputs, tokenizer.sep_token_id * column], dim=1)
        losses: list[Tensor] = []
        labels, selected = documents.reshape(-1, chunk), is_masked.reshape(-1, chunk)
        size = max(1, _BATCH_TOKENS // inputs.shape[1])
        batches = zip(inputs.split(size), labels.split(size), selected.split(size), strict=True)
        for batch, batch_labels, batch_selected in batches:
            logits = model(batch, attention_mask=torch.ones_like(batch)).logits[:, 1:-1]
            loss = F.cross_entropy(logits.flatten(0, 1), batch_labels.flatten(), reduction="none")
            losses.append((loss.view_as(batch_labels) * batch_selected).sum(1))
        sums = torch.cat(losses).view(num_documents, -1).sum(1)
        means = sums / is_masked.sum(1)
        yield length, (sums.sum() / is_masked.sum()).item(), (means.std() / num_documents**0.5).item()


if __name__ == "__main__":
    main()
