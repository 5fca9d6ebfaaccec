"""Export of checkpoints: published links, failures, interruption, and removal after a rollback."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

import mosaicbert  # noqa: F401  (registers its models for from_pretrained)
from mosaicbert.export.hf_folder import publish
from mosaicbert.export.published import load_model
from mosaicbert.train.checkpoint.export_worker import ExportWorker
from mosaicbert.train.checkpoint.format import list_checkpoints, read_checkpoint, remove_checkpoint, step_of
from mosaicbert.train.run_folder import RunFolder
from tests.processes import killed_at_each_file_event


@pytest.fixture
def run(finished, tmp_path):
    """Return a copy of the finished run, which a test may change."""
    shutil.copytree(finished[1].path, tmp_path / "run", symlinks=True)
    return RunFolder(tmp_path / "run")


@pytest.fixture
def log_lines():
    return []


def _exports(run):
    return sorted(path.name for path in run.hugging_face.iterdir() if path.is_dir() and not path.is_symlink())


def _logits(model):
    input_ids = torch.randint(0, 512, (2, 20), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return model.eval()(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits


def _commands_with(folder):
    """Return the command lines of all processes that contain the path of a folder."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # the process has exited
            continue
        if os.fsencode(folder) in command:
            commands.append(command)
    return commands


def _wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_finished_run_has_exactly_one_export_per_checkpoint(finished):
    _, run, _ = finished
    assert [step_of(path) for path in list_checkpoints(run.checkpoints)] == [3, 6]
    assert _exports(run) == ["step-3", "step-6"]


@pytest.mark.parametrize("step", [3, 6, None], ids=["older", "newest", "published"])
def test_an_export_reproduces_the_logits_of_its_checkpoint(step, finished):
    recipe, run, _ = finished
    checkpoint = read_checkpoint(run.checkpoints / f"step-{step or 6}")
    folder = run.export_of(step) if step else run.hugging_face
    exported = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(_logits(exported), _logits(load_model(recipe, checkpoint.model)))


def test_published_files_are_links_to_the_newest_export(finished):
    _, run, _ = finished
    newest = run.export_of(6)
    links = {path.name: path for path in run.hugging_face.iterdir() if path.is_symlink()}
    assert links.pop("latest").resolve() == newest.resolve()
    assert links.keys() == {path.name for path in newest.iterdir()}
    assert all(os.readlink(path) == f"latest/{name}" for name, path in links.items())


def _write_export(parent, step, names):
    folder = parent / f"step-{step}"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(f"{name} of {step}")
    return folder


def _published(parent):
    return {path.name: path.read_text() for path in parent.iterdir() if path.is_symlink() and path.is_file()}


def test_only_the_files_of_the_newest_export_are_published(tmp_path):
    publish(tmp_path, _write_export(tmp_path, 3, ["weights", "config", "old.py"]))
    assert _published(tmp_path) == {"weights": "weights of 3", "config": "config of 3", "old.py": "old.py of 3"}
    publish(tmp_path, _write_export(tmp_path, 6, ["weights", "config", "new.py"]))
    assert _published(tmp_path) == {"weights": "weights of 6", "config": "config of 6", "new.py": "new.py of 6"}
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "weights", "config", "new.py", "step-3", "step-6"}


def test_publishing_again_does_not_change_the_links(tmp_path):
    newest = _write_export(tmp_path, 3, ["weights", "config"])
    publish(tmp_path, newest)
    before = {path.name: path.lstat().st_ino for path in tmp_path.iterdir() if path.name != "latest"}
    publish(tmp_path, newest)
    assert {path.name: path.lstat().st_ino for path in tmp_path.iterdir() if path.name != "latest"} == before
    assert _published(tmp_path) == {"weights": "weights of 3", "config": "config of 3"}


def test_publishing_replaces_other_files_of_the_same_name(tmp_path):
    (tmp_path / "weights").write_text("other content")
    publish(tmp_path, _write_export(tmp_path, 3, ["weights"]))
    assert _published(tmp_path) == {"weights": "weights of 3"}


def test_a_published_folder_can_be_moved(tmp_path):
    publish(tmp_path / "hf", _write_export(tmp_path / "hf", 3, ["weights"]))
    (tmp_path / "hf").rename(tmp_path / "moved")
    assert _published(tmp_path / "moved") == {"weights": "weights of 3"}


def test_at_any_time_all_published_files_are_of_one_export(tmp_path):
    parent = tmp_path / "hf"
    old = _write_export(parent, 3, ["weights", "config", "tokenizer", "old.py"])
    new = _write_export(parent, 6, ["weights", "config", "tokenizer", "new.py"])
    publish(parent, old)
    published_steps = set()
    for _ in killed_at_each_file_event(lambda: publish(parent, new)):
        published = _published(parent)
        assert {"weights", "config", "tokenizer"} <= published.keys()
        (step,) = {content.split()[-1] for content in published.values()}
        published_steps.add(step)
        publish(parent, new)  # it succeeds after a crash
        assert _published(parent) == {name: f"{name} of 6" for name in ("weights", "config", "tokenizer", "new.py")}
        shutil.rmtree(parent)
        _write_export(parent, 3, ["weights", "config", "tokenizer", "old.py"])
        _write_export(parent, 6, ["weights", "config", "tokenizer", "new.py"])
        publish(parent, old)
    assert published_steps == {"3", "6"}


@pytest.mark.usefixtures("forked")
def test_only_the_export_of_a_corrupted_checkpoint_fails(run, log_lines):
    shutil.rmtree(run.hugging_face)
    (run.hugging_face / "step-1").mkdir(parents=True)  # of a removed checkpoint
    weights = run.checkpoints / "step-6" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    export_worker = ExportWorker(run, log_lines.append)
    export_worker.finish()
    assert list(export_worker.failures) == [6]
    assert "model.safetensors is corrupted" in export_worker.failures[6]
    assert log_lines == [f"step 6: export failed: {export_worker.failures[6]}"]
    assert _exports(run) == ["step-3"]
    assert (run.hugging_face / "latest").resolve() == run.export_of(3).resolve()


def test_a_stopped_export_is_killed_and_leaves_no_incomplete_folder(run, log_lines):
    shutil.rmtree(run.hugging_face)
    export_worker = ExportWorker(run, log_lines.append)
    export_worker.start()
    _wait_until(lambda: len(_commands_with(run.path)) > 1)  # the export and its parity check
    export_worker.stop()
    assert [name for name in _exports(run) if not name.endswith(".partial")] == []
    assert log_lines == [] and export_worker.failures == {}
    assert _commands_with(run.path) == []


def test_an_export_worker_can_be_stopped_before_it_starts(run, log_lines):
    export_worker = ExportWorker(run, log_lines.append)
    export_worker.stop()
    export_worker.stop()
    assert _exports(run) == ["step-3", "step-6"]


def test_existing_exports_are_not_changed(run, log_lines):
    before = {path: path.stat().st_mtime_ns for path in run.hugging_face.rglob("*")}
    export_worker = ExportWorker(run, log_lines.append)
    export_worker.start()
    export_worker.finish()
    assert {path: path.stat().st_mtime_ns for path in run.hugging_face.rglob("*")} == before
    assert log_lines == []


def test_a_rollback_removes_the_exports_of_later_steps(run, log_lines):
    remove_checkpoint(run.checkpoints / "step-6")
    ExportWorker(run, log_lines.append).remove_after(3)
    assert _exports(run) == ["step-3"]


def test_after_a_rollback_the_newest_remaining_export_is_published(run, log_lines):
    remove_checkpoint(run.checkpoints / "step-6")
    ExportWorker(run, log_lines.append).remove_after(3)
    links = {path.name: path for path in run.hugging_face.iterdir() if path.is_symlink()}
    assert links.pop("latest").resolve() == run.export_of(3).resolve()
    assert links.keys() == {path.name for path in run.export_of(3).iterdir()}


def test_a_rollback_to_the_beginning_removes_all_exports(run, log_lines):
    ExportWorker(run, log_lines.append).remove_after(0)
    assert not run.hugging_face.exists() or list(run.hugging_face.iterdir()) == []


def test_failures_of_later_steps_are_cleared_by_a_rollback(run, log_lines):
    export_worker = ExportWorker(run, log_lines.append)
    export_worker.failures |= {3: "corrupted", 6: "corrupted"}
    export_worker.remove_after(3)
    assert export_worker.failures == {3: "corrupted"}
