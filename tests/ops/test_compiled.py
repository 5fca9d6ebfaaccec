"""Ahead-of-time compilation of the kernels to machine code, which Triton's interpreter does not cover."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

_SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "kernels.py"
# Bytes per thread. On sm_90, Triton 3.3 spills 64 bytes in the first tile configuration of
# _attention_backward_whole_kernel and 16 in that of _attention_backward_key_kernel, and Triton 3.9 none, see
# docs/benchmarks/kernels.jsonl. A larger stack indicates a regression.
_MAX_STACK_BYTES = 64


def test_every_kernel_compiles_for_sm_90_with_matrix_instructions_and_at_most_64_bytes_of_stack():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(_SCRIPT), "--smoke"]
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = completed.stdout.splitlines()
    assert len({line.partition(" bfloat16")[0] for line in lines}) == 10  # kernels
    for line in lines:
        fields = dict(field.split("=") for field in line.rpartition(": ")[2].split(", "))
        assert int(fields["stack_bytes"]) <= _MAX_STACK_BYTES, line
        assert (int(fields["matrix_instructions"]) > 0) == line.startswith("attention"), line
