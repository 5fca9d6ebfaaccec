"""The kernels in the compiler that makes machine code, which the interpreter never asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

_SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "kernels.py"


def test_every_kernel_compiles_for_a_hopper_gpu_with_matrix_instructions_and_without_spilling():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(_SCRIPT), "--smoke"]
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = completed.stdout.splitlines()
    assert len({line.partition(" bfloat16")[0] for line in lines}) == 9  # kernels
    for line in lines:
        fields = dict(part.split("=") for part in line.rpartition(": ")[2].split(", "))
        assert int(fields["stack_bytes"]) <= 64, line
        assert (int(fields["matrix_instructions"]) > 0) == line.startswith("attention"), line
