"""Benchmark of a training step per real token, against Hugging Face's BERT of the same width and depth.

All models predict the same masked tokens of the same documents. MosaicBERT runs unpadded. For the models of Hugging
Face, the documents are padded to the longest of the batch, which is common practice.

On a GPU, a step includes a fused AdamW, in bf16 autocast with fp32 weights, for Base and Large. Hugging Face's
ModernBERT is measured too, with logits at masked tokens only. Compiled models are compiled by layer. A model that runs
out of memory is measured again with half of the documents. Versions for which --seconds is too short are recorded as
not run. On a CPU, forward and backward pass of a small model are measured.

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
from documents import SIMULATED, cut, random_batch, real_seqlens, web_like_seqlens
from harness import TimeLimitExceeded, describe, dtype_name, measure, print_record, record, time_limit, write_lines
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
NUM_WEB_LIKE_TOKENS, MAX_WEB_LIKE_LENGTH = 4096, 512

RECIPES = Path(__file__).parents[2] / "recipes"
NUM_GPU_TOKENS = {"base": 65_536, "large": 32_768}  # of a micro-batch
MIN_TOKENS = 8192  # a model that runs out of memory is not measured with fewer
GPU_LENGTHS = (128, 1024)
GPU_MASK_RATE = 0.3
PAD_TOKEN_ID = 0  # of Hugging Face's padded batches
MAX_VERSION_SECONDS = 60.0  # for one version of one case, compilation included
# Sizes of ModernBERT-large (arXiv:2412.13663). Those of ModernBERT-base are the defaults of its configuration.
MODERNBERT = {
    "base": {},
    "large": {"hidden_size": 1024, "intermediate_size": 2624, "num_hidden_layers": 28, "num_attention_heads": 16},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="token store with real document lengths; default: simulated lengths")
    parser.add_argument("--seconds", type=float, default=1800.0, help="approximate total time on a GPU")
    arguments = parser.parse_args()
    if torch.cuda.is_available():
        return compare_on_gpu(gpu_cases(arguments.store), gpu_versions(), "cuda", arguments.seconds)
    compare_on_cpu()
    return 0


def compare_on_cpu() -> None:
    models = {
        "Hugging Face's BERT, padded": build_model(shape("bert", intermediate_size=1024)),
        "MosaicBERT": build_model(shape("mosaicbert", intermediate_size=1024)),
    }
    batches = {
        "full documents of 128": random_batch([128] * NUM_FULL_DOCUMENTS),
        "web-like documents up to 512": random_batch(web_like_seqlens(NUM_WEB_LIKE_TOKENS, MAX_WEB_LIKE_LENGTH)),
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
    """Return a function that runs a forward and backward pass, and a step of the optimizer if one is given."""
    device = batch.input_ids.device.type
    is_mosaicbert = model.config.model_type == "mosaicbert"
    padded = {} if is_mosaicbert else batch.padded(pad_token_id=PAD_TOKEN_ID)

    def loss() -> Tensor:
        return model.masked_lm_loss(batch)[0] / batch.num_masked if is_mosaicbert else model(**padded).loss

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
    """Documents and the model size to measure on.

    Attributes:
        size: Model size, "base" or "large".
        lengths: Description of the document lengths.
        batch: Micro-batch on the CPU.
    """

    size: str
    lengths: str
    batch: MicroBatch


@dataclass(frozen=True)
class Version:
    """Model to measure.

    Attributes:
        build: Function that builds the model of a size in training mode.
        flops: Function that returns the FLOPs of a step from size and batch, as in `training_flops`.
        compile: Function that compiles the model in place, or None.
    """

    build: Callable[[str], Any]
    flops: Callable[[str, MicroBatch], float]
    compile: Callable[[Any], None] | None = None


def gpu_cases(store: Path | None) -> list[Case]:
    num_tokens = NUM_GPU_TOKENS["base"]
    if store is None:
        uneven, origin = cut(web_like_seqlens(num_tokens, MAX_WEB_LIKE_LENGTH), num_tokens), SIMULATED
    else:
        uneven, origin = real_seqlens(store, num_tokens), "real"
    uneven_name = f"{origin}, up to {max(uneven)}"
    cases = [("base", uneven_name, uneven)]
    for size, tokens in NUM_GPU_TOKENS.items():
        cases += [(size, f"all {length}", [length] * (tokens // length)) for length in GPU_LENGTHS]
    vocab_size = model_config_of("base").vocab_size
    return [
        Case(size, lengths, random_batch(seqlens, vocab_size, GPU_MASK_RATE))
        for size, lengths, seqlens in (cases[1], cases[0], *cases[2:])
    ]


def model_config_of(size: str) -> ModelConfig:
    return load_recipe(RECIPES / f"mosaicbert-{size}-c4.yaml").model


def bert_of(size: str) -> ModelConfig:
    """Return the configuration of Hugging Face's BERT with the sizes of MosaicBERT and the dropout of its recipe."""
    config = model_config_of(size)
    return replace(config, architecture="bert", attention_probs_dropout_prob=config.hidden_dropout_prob)


def gpu_versions() -> dict[str, Version]:
    """Return the models to measure by name, most important first."""

    def mosaicbert(attention: str = "auto", compiler: Callable[[Any], None] | None = None) -> Version:
        def build(size: str) -> Any:
            model = build_model(model_config_of(size))
            model.set_attn_implementation(attention)
            return model

        return Version(build, lambda size, batch: flops_of(model_config_of(size), batch), compiler)

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
        "MosaicBERT, compiled": mosaicbert(compiler=compile_model),
        "Hugging Face BERT, sdpa": bert("sdpa"),
        f"Hugging Face ModernBERT, {best}": modernbert(best),
        "Hugging Face BERT, sdpa, compiled": bert("sdpa", compile_layers),
        f"Hugging Face ModernBERT, {best}, compiled": modernbert(best, compile_layers),
        "MosaicBERT, eager": mosaicbert(),
        "MosaicBERT, compiled, sdpa": mosaicbert("sdpa", compile_model),
    }
    if has_flash:
        versions["Hugging Face BERT, flash_attention_2"] = bert(best)
    return versions


def modernbert_config(size: str) -> ModernBertConfig:
    return ModernBertConfig(sparse_prediction=True, **MODERNBERT[size])


def compile_layers(model: Any) -> None:
    """Compile each layer and the head of a Hugging Face model in place, like `compile_model`."""
    torch._dynamo.config.recompile_limit = 128
    layers, head = (model.bert.encoder.layer, model.cls) if hasattr(model, "bert") else (model.model.layers, model.head)
    for module in (*layers, head):
        module.compile(dynamic=False)


def flops_of(model: ModelConfig, batch: MicroBatch) -> float:
    squared = float(batch.cu_seqlens.diff().double().square().sum())
    return training_flops(model, num_tokens=batch.num_tokens, squared_lengths=squared, num_masked=batch.num_masked)


def modernbert_flops(config: ModernBertConfig, batch: MicroBatch) -> float:
    """Return the FLOPs of a step as in `training_flops`, counting only token pairs within the attention window."""
    width, window = config.hidden_size, config.local_attention // 2
    seqlens = batch.cu_seqlens.diff().double()
    local_pairs = torch.where(seqlens > window, seqlens * (2 * window + 1) - window * (window + 1), seqlens.square())
    layer_types = config.layer_types or []
    pairs = layer_types.count("full_attention") * float(seqlens.square().sum())
    pairs += layer_types.count("sliding_attention") * float(local_pairs.sum())
    per_layer = 4 * width * width + 3 * width * config.intermediate_size
    head = width * width + config.vocab_size * width
    matrices = config.num_hidden_layers * per_layer * batch.num_tokens + head * batch.num_masked
    return 6.0 * (matrices + 2 * width * pairs)


def compare_on_gpu(cases: list[Case], versions: dict[str, Version], device: str, seconds: float) -> int:
    """Record every version on every case. Return 1 if a MosaicBERT version failed, otherwise 0."""
    end = time.perf_counter() + seconds
    failures = 0
    for by, version in versions.items():
        for case in cases:
            line: dict[str, Any] = {"what": f"whole step, {case.size}", "by": by, "lengths": case.lengths}
            seconds_left = end - time.perf_counter()
            if seconds_left <= 0:
                result: dict[str, Any] = {"shape": shape_of(case.batch), "error": "not run: no time was left"}
            else:
                result = run(version, case, device, min(seconds_left, MAX_VERSION_SECONDS))
                timed_out = result.get("error", "").startswith("TimeLimitExceeded")
                failures += by.startswith("MosaicBERT") and "error" in result and not timed_out
            line |= {"dtype": dtype_name(torch.bfloat16), **result, "transformers": transformers_version}
            write_lines("training_step", [line], device)
            print_record(line)
    return min(failures, 1)


def run(version: Version, case: Case, device: str, seconds: float) -> dict[str, Any]:
    """Return the time and memory of a version, or its error."""
    batch = case.batch
    while True:
        result: dict[str, Any] = {"shape": shape_of(batch)}
        try:
            with time_limit(seconds):
                return result | time_step(version, case.size, batch.to(device))
        except torch.OutOfMemoryError as error:
            result["error"] = describe(error)
        except (Exception, TimeLimitExceeded) as error:  # any failure of a version is its result
            return result | {"error": describe(error)}
        finally:
            release(device)
        seqlens = batch.cu_seqlens.diff().tolist()[::2]  # every second document, to keep the distribution of lengths
        if sum(seqlens) < MIN_TOKENS:
            return result
        batch = random_batch(seqlens, model_config_of(case.size).vocab_size, GPU_MASK_RATE)


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
    peak_flops = next((gpu.peak_flops for gpu in ACCELERATORS if gpu.name in device_name(device)), None)
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
    attention = model.config._attn_implementation
    if model.config.model_type != "mosaicbert":
        return attention
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    return choose_attention(attention or "auto", device, torch.bfloat16, head_dim).name


def device_name(device: str) -> str:
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
