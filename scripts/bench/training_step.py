"""A training step: MosaicBERT against Hugging Face's BERT of the same width and depth, per real token.

All predict the same masked tokens of the same documents. Hugging Face's models get them padded to the longest of the
batch, as their users pad; ours unpadded.

On a GPU the step is whole, with a fused AdamW, in bf16 autocast over fp32 weights, for Base and Large; Hugging Face's
ModernBERT, computing logits at masked tokens only, is there too. Its models are compiled by layer, as ours. A model
that runs out of memory is tried again with half of the documents. Versions that --seconds leaves no time for are
recorded as such. On a CPU it is the forward and backward pass at a small size.

Run: python scripts/bench/training_step.py [--store STORE] [--seconds SECONDS]
"""

import argparse
import gc
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from documents import MADE_UP, cut, random_batch, real_seqlens, web_like_seqlens
from harness import OutOfTime, describe, measure, name_of, record, show, time_limit, write_lines
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM
from transformers import __version__ as transformers_version

from mosaicbert.batch import MicroBatch
from mosaicbert.config import ModelConfig
from mosaicbert.config.load import load_recipe
from mosaicbert.estimate import ACCELERATORS, training_flops
from mosaicbert.model.factory import build_model
from mosaicbert.ops.attention import choose_attention
from mosaicbert.train.compile import compile_model

VOCAB_SIZE = 8192
SIZES = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
NUM_FULL_DOCUMENTS = 32
NUM_WEB_LIKE_TOKENS, LONGEST = 4096, 512

RECIPES = Path(__file__).parents[2] / "recipes"
NUM_GPU_TOKENS = {"base": 65_536, "large": 32_768}  # of a micro-batch
FEWEST_TOKENS = 8192  # below which a model that runs out of memory is given up
GPU_LENGTHS = (128, 1024)
GPU_MASK_RATE = 0.3
PADDING = 0  # the id in Hugging Face's padded batches
VERSION_SECONDS = 60.0  # for one version of one case, compiling included
# ModernBERT-large's sizes (arXiv:2412.13663); those of its base are the configuration's defaults.
MODERNBERT = {
    "base": {},
    "large": {"hidden_size": 1024, "intermediate_size": 2624, "num_hidden_layers": 28, "num_attention_heads": 16},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a token store with real lengths; without it they are made up")
    parser.add_argument("--seconds", type=float, default=1800.0, help="to spend on a GPU, more or less")
    parsed = parser.parse_args()
    if torch.cuda.is_available():
        return compare_on_gpu(gpu_cases(parsed.store), gpu_versions(), "cuda", parsed.seconds)
    compare_on_cpu()
    return 0


def compare_on_cpu() -> None:
    models = {
        "Hugging Face's BERT, padded": build_model(shape("bert", intermediate_size=1024)),
        "MosaicBERT": build_model(shape("mosaicbert", intermediate_size=1024)),
    }
    batches = {
        "full documents of 128": random_batch([128] * NUM_FULL_DOCUMENTS),
        "web-like documents up to 512": random_batch(web_like_seqlens(NUM_WEB_LIKE_TOKENS, LONGEST)),
    }
    for dtype in (torch.bfloat16, torch.float32):
        for what, batch in batches.items():
            versions = {by: training_step(model.train(), batch, dtype) for by, model in models.items()}
            shape_of_batch = {"tokens": batch.num_tokens, "documents": batch.num_sequences, "longest": batch.max_seqlen}
            record("training_step", what, versions, shape=shape_of_batch, dtype=dtype, seconds=20.0)


def shape(architecture: str, intermediate_size: int) -> ModelConfig:
    return ModelConfig(
        architecture=architecture,  # pyright: ignore[reportArgumentType]
        vocab_size=VOCAB_SIZE,
        intermediate_size=intermediate_size,
        hidden_dropout_prob=0.0,
        **SIZES,
    )


def training_step(
    model: Any, batch: MicroBatch, dtype: torch.dtype, optimizer: torch.optim.Optimizer | None = None
) -> Callable[[], object]:
    """Forward and backward pass, and the optimizer's step if there is one."""
    device = batch.input_ids.device.type
    is_ours = model.config.model_type == "mosaicbert"
    padded = {} if is_ours else batch.padded(pad_token_id=PADDING)

    def loss() -> Tensor:
        return model.masked_lm_loss(batch)[0] / batch.num_masked if is_ours else model(**padded).loss

    def step() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            value = loss()
        value.backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad()

    return step


@dataclass(frozen=True)
class Case:
    """Documents for a size of model.

    Attributes:
        size: "base" or "large".
        lengths: where those of the documents come from.
        batch: on the CPU.
    """

    size: str
    lengths: str
    batch: MicroBatch


@dataclass(frozen=True)
class Version:
    """A model and how it is made ready.

    Attributes:
        build: size -> the model, in training mode.
        flops: (size, batch) -> of a step: what any model of its shape must compute, as in `training_flops`.
        compile: in place; None leaves the model as it is.
    """

    build: Callable[[str], Any]
    flops: Callable[[str, MicroBatch], float]
    compile: Callable[[Any], None] | None = None


def gpu_cases(store: Path | None) -> list[Case]:
    num_tokens = NUM_GPU_TOKENS["base"]
    if store is None:
        uneven, origin = cut(web_like_seqlens(num_tokens, LONGEST), num_tokens), MADE_UP
    else:
        uneven, origin = real_seqlens(store, num_tokens), "real"
    uneven_name = f"{origin}, up to {max(uneven)}"
    cases = [("base", uneven_name, uneven)]
    for size, tokens in NUM_GPU_TOKENS.items():
        cases += [(size, f"all {length}", [length] * (tokens // length)) for length in GPU_LENGTHS]
    vocab_size = size_of("base").vocab_size
    return [
        Case(size, lengths, random_batch(seqlens, vocab_size, GPU_MASK_RATE))
        for size, lengths, seqlens in (cases[1], cases[0], *cases[2:])
    ]


def size_of(size: str) -> ModelConfig:
    return load_recipe(RECIPES / f"mosaicbert-{size}-c4.yaml").model


def bert_of(size: str) -> ModelConfig:
    """Hugging Face's BERT with the dropout of its recipe, in our sizes."""
    ours = size_of(size)
    return replace(ours, architecture="bert", attention_probs_dropout_prob=ours.hidden_dropout_prob)


def gpu_versions() -> dict[str, Version]:
    """In the order that time is spent on them: first each library's best without its compiler's help."""

    def ours(rung: str = "auto", compiler: Callable[[Any], None] | None = None) -> Version:
        def build(size: str) -> Any:
            model = build_model(size_of(size))
            model.set_attn_implementation(rung)
            return model

        return Version(build, lambda size, batch: flops_of(size_of(size), batch), compiler)

    def bert(attention: str, compiler: Callable[[Any], None] | None = None) -> Version:
        def build(size: str) -> Any:
            fields = asdict(bert_of(size))
            del fields["architecture"]
            model = BertForMaskedLM(BertConfig(**fields, max_position_embeddings=max(GPU_LENGTHS)))
            model.set_attn_implementation(attention)
            return model

        return Version(build, lambda size, batch: flops_of(bert_of(size), batch), compiler)

    def modernbert(attention: str, compiler: Callable[[Any], None] | None = None) -> Version:
        def build(size: str) -> Any:
            model = ModernBertForMaskedLM(modernbert_config(size))
            model.set_attn_implementation(attention)
            return model

        return Version(build, lambda size, batch: modernbert_flops(modernbert_config(size), batch), compiler)

    has_flash = importlib.util.find_spec("flash_attn") is not None
    best = "flash_attention_2" if has_flash else "sdpa"
    versions = {
        "ours, compiled": ours(compiler=compile_model),
        "Hugging Face BERT, sdpa": bert("sdpa"),
        f"Hugging Face ModernBERT, {best}": modernbert(best),
        "Hugging Face BERT, sdpa, compiled": bert("sdpa", compile_layers),
        f"Hugging Face ModernBERT, {best}, compiled": modernbert(best, compile_layers),
        "ours, eager": ours(),
        "ours, compiled, sdpa": ours("sdpa", compile_model),
    }
    if has_flash:
        versions["Hugging Face BERT, flash_attention_2"] = bert(best)
    return versions


def modernbert_config(size: str) -> ModernBertConfig:
    return ModernBertConfig(sparse_prediction=True, **MODERNBERT[size])


def compile_layers(model: Any) -> None:
    """Compiles one of Hugging Face's models as ours is compiled: each layer and the head, not what is around them."""
    torch._dynamo.config.recompile_limit = 128
    parts = (model.bert.encoder.layer, model.cls) if hasattr(model, "bert") else (model.model.layers, model.head)
    for module in (*parts[0], parts[1]):
        module.compile(dynamic=False)


def flops_of(model: ModelConfig, batch: MicroBatch) -> float:
    squared = float(batch.cu_seqlens.diff().double().square().sum())
    return training_flops(model, tokens=batch.num_tokens, squared_lengths=squared, masked=batch.num_masked)


def modernbert_flops(config: ModernBertConfig, batch: MicroBatch) -> float:
    """As `training_flops` counts, with the window of most layers: a pair of tokens outside of it costs nothing."""
    width, reach = config.hidden_size, config.local_attention // 2
    seqlens = batch.cu_seqlens.diff().double()
    inside = torch.where(seqlens > reach, seqlens * (2 * reach + 1) - reach * (reach + 1), seqlens.square())
    kinds = config.layer_types or []
    pairs = kinds.count("full_attention") * float(seqlens.square().sum())
    pairs += kinds.count("sliding_attention") * float(inside.sum())
    per_layer = 4 * width * width + 3 * width * config.intermediate_size
    head = width * width + config.vocab_size * width
    matrices = config.num_hidden_layers * per_layer * batch.num_tokens + head * batch.num_masked
    return 6.0 * (matrices + 2 * width * pairs)


def compare_on_gpu(cases: list[Case], versions: dict[str, Version], device: str, seconds: float) -> int:
    """Records every version on every case; 1 if one of ours did not work."""
    end = time.perf_counter() + seconds
    failures = 0
    for by, version in versions.items():
        for case in cases:
            line: dict[str, Any] = {"what": f"whole step, {case.size}", "by": by, "lengths": case.lengths}
            left = end - time.perf_counter()
            if left <= 0:
                found: dict[str, Any] = {"shape": shape_of(case.batch), "error": "not run: no time was left"}
            else:
                found = run(version, case, device, min(left, VERSION_SECONDS))
                failures += by.startswith("ours") and "error" in found and not found["error"].startswith("OutOfTime")
            line |= {"dtype": name_of(torch.bfloat16), **found, "transformers": transformers_version}
            write_lines("training_step", [line], device)
            show(line)
    return min(failures, 1)


def run(version: Version, case: Case, device: str, seconds: float) -> dict[str, Any]:
    """What a version took of time and memory, or why it did not run."""
    batch = case.batch
    while True:
        found: dict[str, Any] = {"shape": shape_of(batch)}
        try:
            with time_limit(seconds):
                return found | time_step(version, case.size, batch.to(device))
        except torch.OutOfMemoryError as error:
            found["error"] = describe(error)
        except (Exception, OutOfTime) as error:  # whatever keeps a version from running is its result
            return found | {"error": describe(error)}
        finally:
            release(device)
        seqlens = batch.cu_seqlens.diff().tolist()[::2]  # every other one: as many of each length
        if sum(seqlens) < FEWEST_TOKENS:
            return found
        batch = random_batch(seqlens, size_of(case.size).vocab_size, GPU_MASK_RATE)


def time_step(version: Version, size: str, batch: MicroBatch) -> dict[str, Any]:
    device = batch.input_ids.device.type
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    torch.manual_seed(0)
    with torch.device(device):
        model = version.build(size).train()
    if version.compile is not None:
        version.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device == "cuda")
    step = training_step(model, batch, torch.bfloat16, optimizer)
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    first_seconds = time.perf_counter() - start
    peak = peak_bytes(step) - before if device == "cuda" else 0
    timings, errors = measure({"": step}, device, seconds=1.5)
    if errors:
        raise RuntimeError(errors[""])
    median = timings[""].median
    peak_flops = next((gpu.peak_flops for gpu in ACCELERATORS if gpu.name in name_of_device(device)), None)
    flops = version.flops(size, batch)
    return {
        "median_us": round(median, 1),
        "iqr_us": round(timings[""].iqr, 1),
        "tokens_per_second": round(batch.num_tokens / median * 1e6),
        "tflops": round(flops / median / 1e6, 1),
        "mfu": None if peak_flops is None else round(flops / median * 1e6 / peak_flops, 4),
        "peak_gib": round(peak / 2**30, 2),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention": attention_of(model, device),
        "first_call_seconds": round(first_seconds, 1),
    }


def attention_of(model: Any, device: str) -> str:
    asked = model.config._attn_implementation
    if model.config.model_type != "mosaicbert":
        return asked
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    return choose_attention(asked or "auto", device, torch.bfloat16, head_dim).name


def name_of_device(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def peak_bytes(call: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def release(device: str) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def shape_of(batch: MicroBatch) -> dict[str, int]:
    return {
        "tokens": batch.num_tokens,
        "documents": batch.num_sequences,
        "longest": batch.max_seqlen,
        "padded_tokens": batch.num_sequences * batch.max_seqlen,
    }


if __name__ == "__main__":
    sys.exit(main())
