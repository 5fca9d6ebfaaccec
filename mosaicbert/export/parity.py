"""Parity check of an exported folder against the logits of the trained model, in separate processes."""

import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

# Maximum absolute difference of logits for equal fp32 weights. It covers different orders of summation.
TOLERANCE = 1e-4

_PROBE = """
import sys

folder, inputs, outputs, mode, site = sys.argv[1:]
if mode == "package":
    import mosaicbert
else:
    sys.path.append(site)
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=mode == "remote_code", dtype=torch.float32)
with torch.no_grad():
    save_file({"logits": model.eval()(**load_file(inputs)).logits.contiguous()}, outputs)
"""


class ParityError(RuntimeError):
    """Error of an exported folder that does not reproduce the logits of its model."""


def check_parity(model: PreTrainedModel, folder: Path, modes: tuple[str, ...]) -> None:
    """Load an exported folder in new processes and compare its logits with those of the model, on the CPU in fp32.

    Args:
        model: Exported model on the CPU, in evaluation mode. Its weights are converted to fp32 in place.
        folder: Exported folder.
        modes: Ways of loading. "package" imports mosaicbert first. "remote_code" loads the code in the folder, in an
            environment with only torch, transformers and their requirements.

    Raises:
        ParityError: If loading fails, or logits differ by more than TOLERANCE or are NaN.
    """
    inputs = _make_probe_inputs(model.config.vocab_size)
    with torch.no_grad():
        expected: Tensor = model.float()(**inputs).logits
    with tempfile.TemporaryDirectory() as scratch:
        inputs_path = Path(scratch, "inputs.safetensors")
        save_file(inputs, inputs_path)
        for mode in modes:
            outputs_path = Path(scratch, f"{mode}.safetensors")
            _run_probe(folder, inputs_path, outputs_path, mode, Path(scratch))
            difference = (
                (load_file(outputs_path)["logits"] - expected)[inputs["attention_mask"].bool()].abs().max().item()
            )
            if not difference <= TOLERANCE:  # this form of the condition also rejects NaN
                raise ParityError(
                    f"`{folder}` logits must match the trained model within {TOLERANCE:g}, got a difference of "
                    f"{difference:.3g} when loaded by {mode}. The export was not written."
                )


def _make_probe_inputs(vocab_size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, vocab_size, (3, 24), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 17:] = 0
    attention_mask[2, 5:] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def _run_probe(folder: Path, inputs: Path, outputs: Path, mode: str, scratch: Path) -> None:
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    isolation: list[str] = []
    site = scratch / "site"
    if mode == "remote_code":
        isolation = ["-I", "-S"]  # only packages linked in `site` can be imported
        _link_requirements(site, ("torch", "transformers"))
    else:
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    command = [
        sys.executable,
        *isolation,
        "-c",
        _PROBE,
        str(folder.resolve()),
        str(inputs),
        str(outputs),
        mode,
        str(site),
    ]
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if completed.returncode:
        last_line = completed.stderr.strip().splitlines()[-1:] or ["no output"]
        raise ParityError(
            f"`{folder}` must be loadable by {mode}, got {last_line[0].rstrip('.')}. The export was not written."
        )


def _link_requirements(site: Path, packages: tuple[str, ...]) -> None:
    """Create a folder of links to installed packages and their requirements, and to nothing else."""
    site.mkdir()
    required: set[str] = set()
    pending = list(packages)
    while pending:
        name = canonicalize_name(pending.pop())
        if name in required:
            continue
        required.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # a requirement of a different platform
        requirements = [Requirement(text) for text in distribution.requires or []]
        pending += [
            requirement.name
            for requirement in requirements
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ]
        for entry in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            link = site / entry
            if not link.exists():
                link.symlink_to(str(distribution.locate_file(entry)))
