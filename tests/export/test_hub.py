"""Upload of exports to a local stand-in of the Hub, and loading from there."""

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
