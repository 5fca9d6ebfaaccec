"""Ahead-of-time compilation of all Triton kernels, with a record of the GPU resources they use. Does not require a GPU.

Each tile configuration adds one line to docs/benchmarks/kernels.jsonl with registers per thread, bytes of stack per
thread (mostly spilled registers), bytes of shared memory per program and the number of matrix instructions in the PTX.
For kernels with a loop over tiles, it also has the instructions of the loop per score, which limit the speed for long
documents. `defect` is the reason why autotuning does not measure a configuration.

Run: python scripts/bench/kernels.py
"""

import argparse
import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from harness import write_lines
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mosaicbert.ops import attention_kernels, cross_entropy_kernels, geglu_kernels, layer_norm_kernels
from mosaicbert.ops.autotune import TileConfig, find_defect

ARCHITECTURES = {"sm_80": 80, "sm_90": 90}  # A100; H100 and H200
DTYPES = {"bfloat16": "*bf16", "float32": "*fp32"}
_MATRIX_INSTRUCTIONS = ("HMMA", "HGMMA")  # sm_80 and sm_90
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Case:
    """Compilation of a kernel.

    Attributes:
        kernel: Function decorated with `triton.jit`.
        dtype: dtype of tensors that signature does not list, a key of DTYPES.
        signature: Triton type by argument name, for arguments with another type than the default.
        constants: Value by name of each constexpr argument.
        num_warps: Warps per program.
        num_stages: Stages of software pipelining.
        max_registers: Maximum number of registers per thread, or None for the choice of the assembler.
    """

    kernel: Any
    dtype: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int = 1
    max_registers: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="compile the first tile configuration of each kernel for sm_90, without recording",
    )
    smoke = parser.parse_args().smoke
    cases = (attention_cases(first_only=smoke), geglu_cases(), layer_norm_cases(), cross_entropy_cases())
    architectures = {"sm_90": 90} if smoke else ARCHITECTURES
    for case in itertools.chain(*cases):
        for architecture, capability in architectures.items():
            usage = measure_resources(case, capability)
            summary = ", ".join(f"{key}={value}" for key, value in usage.items())
            constants = {key: value for key, value in case.constants.items() if value is not None}
            name = case.kernel.__name__.strip("_").removesuffix("_kernel")
            print(f"{name} {case.dtype} {architecture} {constants} num_warps={case.num_warps}: {summary}", flush=True)
            if not smoke:
                line = {
                    "kernel": name,
                    "dtype": case.dtype,
                    "architecture": architecture,
                    **constants,
                    "num_warps": case.num_warps,
                    "num_stages": case.num_stages,
                    **({"max_registers": case.max_registers} if case.max_registers else {}),
                    **usage,
                    "triton": triton.__version__,
                }
                write_lines("kernels", [line])


def attention_cases(first_only: bool) -> Iterator[Case]:
    # Constants of the kernels besides sizes of heads and tiles, in one or more variants.
    variants: dict[str, list[dict[str, Any]]] = {
        "forward": [{"ONE_TILE": True}, {"ONE_TILE": False}],
        "backward_whole": [{}],
        "backward_two_tiles": [{}],
        "backward_query": [{"ONE_PASS": 256}],
        "backward_key": [{"ONE_PASS": 256}],
    }
    types = {name: "*fp32" for name in ("slopes_ptr", "lse_ptr", "delta_ptr", "partial_ptr")}
    heads = [(64, "bfloat16"), (32, "bfloat16"), (128, "bfloat16"), (64, "float32"), (32, "float32")]
    for (dim, dtype), (name, constants) in itertools.product(heads[:1] if first_only else heads, variants.items()):
        tile_configs: Sequence[TileConfig] = attention_kernels.tile_configs(name, dim, getattr(torch, dtype))
        for config, variant in itertools.product(tile_configs[:1] if first_only else tile_configs, constants):
            yield Case(
                getattr(attention_kernels, f"_attention_{name}_kernel"),
                dtype,
                {"cu_seqlens_ptr": "*i32", **types},
                {"DIM": dim, "WINDOW": None, "ROWS": config.rows, "COLUMNS": config.columns, **variant},
                *config[2:],
            )


def geglu_cases() -> Iterator[Case]:
    for kernel in (geglu_kernels._geglu_forward_kernel, geglu_kernels._geglu_backward_kernel):
        yield Case(kernel, "bfloat16", {"seed_ptr": "*i64"}, {"BLOCK": 1024}, num_warps=4)


def layer_norm_cases() -> Iterator[Case]:
    statistics = {"weight_ptr": "*fp32", "bias_ptr": "*fp32", "rstd_ptr": "*fp32", "partial_sums_ptr": "*fp32"}
    kernels = (
        (layer_norm_kernels._layer_norm_forward_kernel, 1024),
        (layer_norm_kernels._layer_norm_backward_kernel, 2048),
    )
    for width, (kernel, elements) in itertools.product((768, 1024), kernels):
        tile = layer_norm_kernels._tile(width, elements)
        yield Case(kernel, "bfloat16", {**statistics, "seed_ptr": "*i64"}, tile, num_warps=tile.pop("num_warps"))


def cross_entropy_cases() -> Iterator[Case]:
    types = {"labels_ptr": "*i64", "losses_ptr": "*fp32", "is_correct_ptr": "*i32"}
    constants = {"IGNORED": -100, "WITH_GRADIENT": True, "BLOCK": cross_entropy_kernels._MAX_BLOCK}
    yield Case(
        cross_entropy_kernels._cross_entropy_row_kernel, "bfloat16", types, constants, cross_entropy_kernels._NUM_WARPS
    )


def measure_resources(case: Case, capability: int) -> dict[str, float | str]:
    """Compile a kernel and read its resource usage from the machine code."""
    signature: dict[str, str] = {}
    for name in case.kernel.arg_names:
        default_type = DTYPES[case.dtype] if name.endswith("_ptr") else "fp32" if name in ("scale", "eps") else "i32"
        signature[name] = "constexpr" if name in case.constants else case.signature.get(name, default_type)
    # As at run time, pointers are aligned to 16 bytes and widths are multiples of 16.
    kinds = enumerate(signature.items())
    aligned = {(n,): [["tt.divisibility", 16]] for n, (name, kind) in kinds if kind.startswith("*") or name == "width"}
    source = ASTSource(case.kernel, signature=signature, constexprs=dict(case.constants), attrs=aligned)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "maxnreg": case.max_registers}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage_text, code = (
            subprocess.run([_CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage_text)[-1])
    loop = _loop_with_products(code)
    tile = case.constants.get("ROWS", 0) * case.constants.get("COLUMNS", 0)
    defect = find_defect(stack, compiled.asm["ptx"], capability)
    return {
        "registers": registers,
        "stack_bytes": stack,
        "shared_bytes": compiled.metadata.shared,
        "matrix_instructions": len(re.findall(r"wgmma\.mma_async\.sync|mma\.sync", compiled.asm["ptx"])),
        **({"instructions_per_score": round(loop * 32 * case.num_warps / tile, 2)} if loop else {}),
        **({"defect": defect} if defect else {}),
    }


def _loop_with_products(code: str) -> int:
    """Count the instructions of the shortest loop with a matrix product, or return 0 if there is none."""
    pattern = r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*?);"
    instructions = [(int(address, 16), opcode, operands) for address, opcode, operands in re.findall(pattern, code)]
    lengths: list[int] = []
    for address, opcode, operands in instructions:
        target = re.search(r"0x([0-9a-f]+)", operands) if opcode.startswith("BRA") else None
        if target and int(target[1], 16) < address:
            loop_start = int(target[1], 16)
            body = [opcode for other_address, opcode, _ in instructions if loop_start <= other_address <= address]
            if any(opcode.startswith(_MATRIX_INSTRUCTIONS) for opcode in body):
                lengths.append(len(body))
    return min(lengths, default=0)


if __name__ == "__main__":
    main()
