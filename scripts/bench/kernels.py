"""Compiles every Triton kernel ahead of time, and keeps what it takes of a multiprocessor. Needs no GPU.

Each tiling becomes one line of docs/benchmarks/kernels.jsonl: registers per thread, bytes of stack per thread (spilled
registers, nearly always), bytes of shared memory per program, matrix instructions in the PTX.

Run: python scripts/bench/kernels.py
"""

import argparse
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

from mosaicbert.ops import attention_kernels
from mosaicbert.ops.tiling import Tiling

ARCHITECTURES = {"sm_80": 80, "sm_90": 90}  # A100; H100 and H200
DTYPES = {"bfloat16": "*bf16", "float32": "*fp32"}
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Case:
    """One way to compile a kernel: the types of its arguments, in any order, and its constants."""

    kernel: Any
    dtype: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="only the first tiling of each kernel; record nothing")
    smoke = parser.parse_args().smoke
    for name, cases in (("attention", list(attention_cases(first_only=smoke))),):
        for case in cases:
            for architecture, capability in ARCHITECTURES.items():
                facts = resources(case, capability)
                shown = ", ".join(f"{key}={value}" for key, value in facts.items())
                constants = {key: value for key, value in case.constants.items() if value is not None}
                print(f"{name}: {case.kernel.__name__} {case.dtype} {architecture} {constants}: {shown}", flush=True)
                if not smoke:
                    line = {
                        "kernel": case.kernel.__name__.strip("_"),
                        "dtype": case.dtype,
                        "architecture": architecture,
                        **constants,
                        "num_warps": case.num_warps,
                        "num_stages": case.num_stages,
                        **facts,
                        "triton": triton.__version__,
                    }
                    write_lines("kernels", [line])


def attention_cases(first_only: bool) -> Iterator[Case]:
    for dim, dtype in ((64, "bfloat16"), (32, "bfloat16"), (128, "bfloat16"), (64, "float32")):
        for name in ("forward", "backward_whole", "backward_query", "backward_key"):
            tilings: Sequence[Tiling] = attention_kernels.tilings(name, dim, getattr(torch, dtype))
            kernel = getattr(attention_kernels, f"_{name}_kernel")
            whole = {"WHOLE": 128} if name in ("backward_query", "backward_key") else {}
            for tiling in tilings[:1] if first_only else tilings:
                constants = {"DIM": dim, "WINDOW": None, "ROWS": tiling.rows, "COLUMNS": tiling.columns, **whole}
                types = {"cu_seqlens_ptr": "*i32", "slopes_ptr": "*fp32", "lse_ptr": "*fp32", "delta_ptr": "*fp32"}
                yield Case(kernel, dtype, types, constants, tiling.num_warps, tiling.num_stages)
        if first_only:
            return


def resources(case: Case, capability: int) -> dict[str, int]:
    """Compiles, and reads what the machine code needs."""
    signature: dict[str, str] = {}
    for name in case.kernel.arg_names:
        other = DTYPES[case.dtype] if name.endswith("_ptr") else "fp32" if name == "scale" else "i32"
        signature[name] = "constexpr" if name in case.constants else case.signature.get(name, other)
    # As at run time, where all pointers are aligned to 16 bytes.
    aligned = {(n,): [["tt.divisibility", 16]] for n, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(case.kernel, signature=signature, constexprs=dict(case.constants), attrs=aligned)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[-1])
    return {
        "registers": registers,
        "stack_bytes": stack,
        "shared_bytes": compiled.metadata.shared,
        "matrix_instructions": len(re.findall(r"wgmma\.mma_async\.sync|mma\.sync", compiled.asm["ptx"])),
    }


if __name__ == "__main__":
    main()
