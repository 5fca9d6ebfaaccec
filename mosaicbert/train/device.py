"""Device of a process: precision, peak FLOP/s, CPU threads. This module does not import Composer."""

import time
from dataclasses import replace

import torch

from mosaicbert.batch import MicroBatch
from mosaicbert.config import ConfigError, ModelConfig, Recipe
from mosaicbert.estimate import ACCELERATORS
from mosaicbert.model.factory import build_model
from mosaicbert.processes import count_cpus

_PEAK_SECONDS = 0.5  # duration of the measurement; the fastest product counts, since other processes may run
_AS_CONFIGURED = "set in the recipe"

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MAX_MEASURED_LAYERS = 2
_MAX_MEASURED_TOKENS = 512
_NUM_ROUNDS = 4
_CLEAR_RATIO = 2.0  # no further round is needed; the first one also selects kernels and allocates memory


def choose_precision(precision: str, key: str = "train.precision") -> tuple[torch.dtype, str]:
    """Choose the dtype of matrix products.

    Args:
        precision: "bf16", "fp32" or "auto".
        key: Recipe key of the value, for the error message.

    Returns:
        The dtype, and the reason in words.

    Raises:
        ConfigError: If bf16 is set and the GPU does not support it.
    """
    if precision == "fp32":
        return torch.float32, _AS_CONFIGURED
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, _AS_CONFIGURED if precision == "bf16" else "the GPU supports bf16"
        if precision == "bf16":
            name = torch.cuda.get_device_name()
            raise ConfigError(
                f"`{key}` must be fp32 on a GPU without bf16 support, got bf16 on {name}. Set `{key}=fp32`."
            )
        return torch.float32, "the GPU does not support bf16"
    if precision == "bf16":
        return torch.bfloat16, _AS_CONFIGURED
    # Without matrix units (AMX), CPUs multiply bf16 no faster than fp32.
    if torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "this CPU has AMX"
    return torch.float32, "this CPU does not have AMX, so bf16 would not be faster"


def measure_precisions(recipe: Recipe) -> dict[str, float]:
    """Time training steps on the CPU in both precisions, in turn.

    The measured model has the widths and the vocabulary of the recipe, but few layers and tokens, since their number
    changes the time of a step more than the ratio of two of them.

    Args:
        recipe: Recipe of the run.

    Returns:
        Seconds of the fastest step by precision, "fp32" and "bf16". Other processes may run, so the fastest counts.
    """
    model_config = replace(recipe.model, num_hidden_layers=min(recipe.model.num_hidden_layers, _MAX_MEASURED_LAYERS))
    batch = _make_batch(recipe)
    best = dict.fromkeys(PRECISIONS, float("inf"))
    with torch.random.fork_rng(devices=[]):
        model = build_model(model_config).train()
        for _ in range(_NUM_ROUNDS):
            for precision, dtype in PRECISIONS.items():
                start = time.perf_counter()
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    loss = _loss(model, model_config, batch)
                loss.backward()
                model.zero_grad()
                best[precision] = min(best[precision], time.perf_counter() - start)
            if max(best.values()) > _CLEAR_RATIO * min(best.values()):
                break
    return best


def _loss(model: torch.nn.Module, config: ModelConfig, batch: MicroBatch) -> torch.Tensor:
    if config.architecture == "bert":
        return model(**batch.padded(pad_token_id=0)).loss
    return model.masked_lm_loss(batch)[0]  # pyright: ignore[reportCallIssue]


def _make_batch(recipe: Recipe) -> MicroBatch:
    """Make documents of random tokens, of the maximum length, with the mask rate of the recipe."""
    length = min(recipe.data.max_seq_len, _MAX_MEASURED_TOKENS)
    num_documents = max(1, min(recipe.train.micro_batch_tokens, _MAX_MEASURED_TOKENS) // length)
    num_tokens = length * num_documents
    num_masked = max(1, round(recipe.data.mask_rate * num_tokens))
    generator = torch.Generator().manual_seed(recipe.seed)
    input_ids = torch.randint(recipe.model.vocab_size, (num_tokens,), generator=generator)
    masked_indices = torch.randperm(num_tokens, generator=generator)[:num_masked].sort().values
    return MicroBatch(
        input_ids=input_ids,
        cu_seqlens=torch.arange(0, num_tokens + 1, length, dtype=torch.int32),
        max_seqlen=length,
        masked_indices=masked_indices,
        labels=input_ids[masked_indices],
        num_tokens=num_tokens,
        num_sequences=num_documents,
        num_masked=num_masked,
    )


def peak_flops(dtype: torch.dtype) -> tuple[float, str]:
    """Return the peak of one process's device in FLOP/s, and the source of the number.

    GPUs: dense bf16 peak of the data sheet, for any dtype. CPUs: a large matrix product, measured when called.

    Args:
        dtype: dtype of the matrix product to measure.
    """
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        for accelerator in ACCELERATORS:
            if accelerator.name in name:
                return accelerator.peak_flops, f"data sheet of {accelerator.name}"
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    return _measure_matmul(device_type, dtype), "measured with a 1024 x 1024 x 1024 matrix product"


def _measure_matmul(device_type: str, dtype: torch.dtype) -> float:
    size = 1024
    left, right = (torch.randn(size, size, device=device_type, dtype=dtype) for _ in range(2))
    best = float("inf")
    end = time.perf_counter() + _PEAK_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # synchronizes with the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def limit_cpu_threads(local_world_size: int) -> None:
    """Divide the CPUs among the processes of this machine. More threads than CPUs would slow all of them down.

    Args:
        local_world_size: Number of processes on this machine.
    """
    torch.set_num_threads(max(1, count_cpus() // local_world_size))
