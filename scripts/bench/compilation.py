"""Benchmark of torch.compile on the CPU: eager and compiled forward and backward pass, and compilation time.

Run: python scripts/bench/compilation.py
"""

import time

import torch
from documents import random_batch
from harness import record
from step import training_step

from mosaicbert.config import ModelConfig
from mosaicbert.model.factory import build_model
from mosaicbert.train.compile import compile_model

# A small model, and two layers of Base.
SIZES = {
    "4 layers of 192": (
        {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 512},
        32,
    ),
    "base, 2 layers": ({"num_hidden_layers": 2}, 16),
}


def main() -> None:
    for name, (sizes, num_documents) in SIZES.items():
        batch = random_batch([128] * num_documents)
        for dtype in (torch.float32, torch.bfloat16):
            config = ModelConfig(vocab_size=8192, hidden_dropout_prob=0.0, **sizes)
            eager, compiled = build_model(config).train(), build_model(config).train()
            torch._dynamo.reset()
            compile_model(compiled)
            steps = {"eager": training_step(eager, batch, dtype), "compiled": training_step(compiled, batch, dtype)}
            start = time.perf_counter()
            steps["compiled"]()
            extra_fields = {"eager": {}, "compiled": {"first_call_seconds": round(time.perf_counter() - start, 1)}}
            shape = {"tokens": batch.num_tokens, "documents": batch.num_sequences}
            record("compilation", name, steps, shape=shape, dtype=dtype, seconds=15.0, extra_fields=extra_fields)


if __name__ == "__main__":
    main()
