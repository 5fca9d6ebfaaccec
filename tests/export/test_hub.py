"""Upload of exports to a local stand-in of the Hub, and loading from there."""

import json
import os
import subprocess
import sys

import pytest

from tests.export.hub_server import serve_hub

# Uploads a run twice, and loads the newest export and that of a step.
_PROGRAM = """
import sys
from mosaicbert.cli import main

recipe, steps = sys.argv[1], sys.argv[2:]
for _ in range(2):
    try:
        main(["export", recipe, "--push", "user/tiny"])
    except SystemExit as error:
        assert error.code == 0, error.code
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

run = sys.argv[1].rpartition("/")[0]
for step in steps:
    revision = f"step-{step}"
    loaded = AutoModelForMaskedLM.from_pretrained("user/tiny", revision=revision)
    expected = AutoModelForMaskedLM.from_pretrained(f"{run}/hf/{revision}")
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in expected.state_dict().items())
newest = AutoModelForMaskedLM.from_pretrained("user/tiny")
assert all(torch.equal(weight, newest.state_dict()[name]) for name, weight in expected.state_dict().items())
assert len(AutoTokenizer.from_pretrained("user/tiny")) == newest.config.vocab_size
"""


def run(program, arguments, url, folder, token="token"):
    environment = os.environ | {
        "HF_ENDPOINT": url,
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # another protocol, which the server does not have
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_checkpoint_of_a_run_is_a_revision(finished, tmp_path):
    _, trained, _ = finished
    with serve_hub() as server:
        completed = run(_PROGRAM, [trained.recipe, 3, 6], server.url, tmp_path)
        assert completed.returncode == 0, completed.stderr
        assert set(server.branches) == {("user/tiny", branch) for branch in ("main", "step-3", "step-6")}
        files = server.branches["user/tiny", "main"]
        assert {path.name for path in trained.export_of(6).iterdir()} == set(files)
        assert files["README.md"].startswith(b"---\nlibrary_name: transformers\n")
        assert server.messages[:3] == ["Upload step-3", "Upload step-6", "Upload step-6"]
    assert completed.stdout.splitlines()[1] == f"{server.url}/user/tiny"


@pytest.mark.slow
@pytest.mark.parametrize("name, token", [("user/tiny", "wrong"), ("no/valid/name", "token")])
def test_a_rejected_upload_prints_one_line(name, token, finished, tmp_path):
    _, trained, _ = finished
    program = f"from mosaicbert.cli import main; main(['export', {str(trained.export_of(3))!r}, '--push', {name!r}])"
    with serve_hub() as server:
        completed = run(program, [], server.url, tmp_path, token)
    assert completed.returncode == 2
    (line,) = completed.stderr.splitlines()
    assert f"cannot be uploaded to {name} (" in line and line.endswith("log in with `hf auth login`.")


# Loads the length variants of a published checkpoint by their names.
_PUBLISHED_PROGRAM = """
import sys
import mosaicbert
import torch
from transformers import AutoModel, AutoModelForMaskedLM

folder, *names = sys.argv[1:]
expected = AutoModelForMaskedLM.from_pretrained(folder)
inputs = {"input_ids": torch.arange(300)[None] % 512}
for name in names:
    loaded = AutoModelForMaskedLM.from_pretrained(name)
    assert type(loaded).__name__ == "MosaicBertForMaskedLM"
    assert torch.equal(loaded(**inputs).logits, expected(**inputs).logits)
    assert type(AutoModel.from_pretrained(name)).__name__ == "MosaicBertModel"
"""


@pytest.mark.slow
def test_the_length_variants_of_a_published_checkpoint_load_by_name(original_mosaicbert, tmp_path):
    folder = original_mosaicbert / "masked_lm"
    lengths = {"": 512, "-seqlen-256": 256, "-seqlen-512": 512, "-seqlen-1024": 1024, "-seqlen-2048": 2048}
    names = {f"mosaicml/mosaic-bert-base{suffix}": length for suffix, length in lengths.items()}
    with serve_hub() as server:
        for name, length in names.items():
            # The variants differ in these values of config.json. The dropout of the longest one selects PyTorch's
            # attention in the original code.
            config = json.loads((folder / "config.json").read_text()) | {
                "alibi_starting_size": length,
                "attention_probs_dropout_prob": 0.1 if length == 2048 else 0.0,
            }
            server.branches[name, "main"] = {
                "config.json": json.dumps(config).encode(),
                "pytorch_model.bin": (folder / "pytorch_model.bin").read_bytes(),
            }
        completed = run(_PUBLISHED_PROGRAM, [folder, *names], server.url, tmp_path)
    assert completed.returncode == 0, completed.stderr
