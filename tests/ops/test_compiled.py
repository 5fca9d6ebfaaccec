"""Ahead-of-time compilation of the kernels to machine code, which Triton's interpreter does not cover."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

_SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "kernels.py"


def test_every_kernel_compiles_for_sm_90_with_matrix_instructions_and_without_spills():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(_SCRIPT), "--smoke"]
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = completed.stdout.splitlines()
    assert len({line.partition(" bfloat16")[0] for line in lines}) == 10  # kernels
    for line in lines:
        fields = dict(field.split("=") for field in line.rpartition(": ")[2].split(", "))
        assert int(fields["stack_bytes"]) == 0, line
        assert "defect" not in fields, line
        assert (int(fields["matrix_instructions"]) > 0) == line.startswith("attention"), line
