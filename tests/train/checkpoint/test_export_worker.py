import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

import mosaicbert  # noqa: F401  (from_pretrained knows its models from then on)
from mosaicbert.export.hf_folder import publish
from mosaicbert.export.published import load_model
from mosaicbert.train.checkpoint.export_worker import ExportWorker
from mosaicbert.train.checkpoint.format import list_checkpoints, read_checkpoint, remove_checkpoint, step_of
from mosaicbert.train.run_folder import RunFolder
from tests.processes import killed_at_each_file_event


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run, to change."""
    _, run, _ = finished
    shutil.copytree(run.path, tmp_path / "run", symlinks=True)
    return RunFolder(tmp_path / "run")


@pytest.fixture
def said():
    return []


def _exports(run):
    return sorted(path.name for path in run.hugging_face.iterdir() if path.is_dir() and not path.is_symlink())


def _logits(model):
    input_ids = torch.randint(0, 512, (2, 20), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return model.eval()(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits


def _processes_at_work_on(folder):
    """The command lines of what runs on a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # it has ended
            continue
        if os.fsencode(folder) in command:
            found.append(command)
    return found


def _wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_finished_run_has_an_export_of_each_checkpoint_and_no_other(finished):
    _, run, _ = finished
    assert [step_of(path) for path in list_checkpoints(run.checkpoints)] == [3, 6]
    assert _exports(run) == ["step-3", "step-6"]


@pytest.mark.parametrize("step", [3, 6, None], ids=["older", "newest", "shown"])
def test_an_export_gives_the_logits_of_its_checkpoint(step, finished):
    recipe, run, _ = finished
    checkpoint = read_checkpoint(run.checkpoints / f"step-{step or 6}")
    folder = run.export_of(step) if step else run.hugging_face
    exported = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(_logits(exported), _logits(load_model(recipe, checkpoint.model)))


def test_the_files_that_are_shown_are_links_to_the_newest_export(finished):
    _, run, _ = finished
    newest = run.export_of(6)
    shown = {path.name: path for path in run.hugging_face.iterdir() if path.is_symlink()}
    assert (shown.pop("latest")).resolve() == newest.resolve()
    assert shown.keys() == {path.name for path in newest.iterdir()}
    assert all(os.readlink(path) == f"latest/{name}" for name, path in shown.items())


def _write_export(parent, step, names):
    folder = parent / f"step-{step}"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(f"{name} of {step}")
    return folder


def _shown(parent):
    return {path.name: path.read_text() for path in parent.iterdir() if path.is_symlink() and path.is_file()}


def test_publishing_shows_the_files_of_the_newest_and_no_others(tmp_path):
    publish(tmp_path, _write_export(tmp_path, 3, ["weights", "config", "gone.py"]))
    assert _shown(tmp_path) == {"weights": "weights of 3", "config": "config of 3", "gone.py": "gone.py of 3"}
    publish(tmp_path, _write_export(tmp_path, 6, ["weights", "config", "new.py"]))
    assert _shown(tmp_path) == {"weights": "weights of 6", "config": "config of 6", "new.py": "new.py of 6"}
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "weights", "config", "new.py", "step-3", "step-6"}


def test_publishing_twice_changes_nothing(tmp_path):
    newest = _write_export(tmp_path, 3, ["weights", "config"])
    publish(tmp_path, newest)
    before = {path.name: path.lstat().st_ino for path in tmp_path.iterdir() if path.name != "latest"}
    publish(tmp_path, newest)
    assert {path.name: path.lstat().st_ino for path in tmp_path.iterdir() if path.name != "latest"} == before
    assert _shown(tmp_path) == {"weights": "weights of 3", "config": "config of 3"}


def test_publishing_replaces_a_file_that_lies_in_the_way(tmp_path):
    (tmp_path / "weights").write_text("of another program")
    publish(tmp_path, _write_export(tmp_path, 3, ["weights"]))
    assert _shown(tmp_path) == {"weights": "weights of 3"}


def test_a_published_folder_can_be_moved(tmp_path):
    publish(tmp_path / "hf", _write_export(tmp_path / "hf", 3, ["weights"]))
    (tmp_path / "hf").rename(tmp_path / "elsewhere")
    assert _shown(tmp_path / "elsewhere") == {"weights": "weights of 3"}


def test_whoever_looks_while_it_is_published_sees_files_of_one_export(tmp_path):
    parent = tmp_path / "hf"
    old = _write_export(parent, 3, ["weights", "config", "tokenizer", "gone.py"])
    new = _write_export(parent, 6, ["weights", "config", "tokenizer", "new.py"])
    publish(parent, old)
    seen = set()
    for _ in killed_at_each_file_event(lambda: publish(parent, new)):
        shown = _shown(parent)
        assert {"weights", "config", "tokenizer"} <= shown.keys()
        (step,) = {content.split()[-1] for content in shown.values()}
        seen.add(step)
        publish(parent, new)  # what a crash left does not hinder the next
        assert _shown(parent) == {name: f"{name} of 6" for name in ("weights", "config", "tokenizer", "new.py")}
        shutil.rmtree(parent)
        _write_export(parent, 3, ["weights", "config", "tokenizer", "gone.py"])
        _write_export(parent, 6, ["weights", "config", "tokenizer", "new.py"])
        publish(parent, old)
    assert seen == {"3", "6"}


def test_a_checkpoint_that_is_damaged_costs_its_own_export_only(copy, said):
    shutil.rmtree(copy.hugging_face)
    (copy.hugging_face / "step-1").mkdir(parents=True)  # of a checkpoint that is gone
    weights = copy.checkpoints / "step-6" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    exporter = ExportWorker(copy, said.append)
    exporter.finish()
    assert list(exporter.failures) == [6]
    assert "model.safetensors: damaged" in exporter.failures[6]
    assert said == [f"step 6: export failed: {exporter.failures[6]}"]
    assert _exports(copy) == ["step-3"]
    assert (copy.hugging_face / "latest").resolve() == copy.export_of(3).resolve()


def test_stopping_ends_an_export_at_once_and_leaves_no_half_of_it(copy, said):
    shutil.rmtree(copy.hugging_face)
    exporter = ExportWorker(copy, said.append)
    exporter.follow()
    _wait_until(lambda: len(_processes_at_work_on(copy.path)) > 1)  # the export, and the proof that it loads
    began = time.monotonic()
    exporter.stop()
    assert time.monotonic() - began < 3
    assert [name for name in _exports(copy) if not name.endswith(".partial")] == []
    assert said == [] and exporter.failures == {}
    assert _processes_at_work_on(copy.path) == []


def test_stopping_what_has_not_begun_is_no_error(copy, said):
    exporter = ExportWorker(copy, said.append)
    exporter.stop()
    exporter.stop()
    assert _exports(copy) == ["step-3", "step-6"]


def test_nothing_is_exported_that_is_there(copy, said):
    before = {path: path.stat().st_mtime_ns for path in copy.hugging_face.rglob("*")}
    exporter = ExportWorker(copy, said.append)
    exporter.follow()
    exporter.finish()
    assert {path: path.stat().st_mtime_ns for path in copy.hugging_face.rglob("*")} == before
    assert said == []


def test_going_back_removes_the_exports_of_what_is_undone(copy, said):
    remove_checkpoint(copy.checkpoints / "step-6")
    ExportWorker(copy, said.append).remove_after(3)
    assert _exports(copy) == ["step-3"]


def test_after_going_back_the_newest_export_that_is_left_is_shown(copy, said):
    remove_checkpoint(copy.checkpoints / "step-6")
    ExportWorker(copy, said.append).remove_after(3)
    shown = {path.name: path for path in copy.hugging_face.iterdir() if path.is_symlink()}
    assert shown.pop("latest").resolve() == copy.export_of(3).resolve()
    assert shown.keys() == {path.name for path in copy.export_of(3).iterdir()}


def test_going_back_to_the_beginning_removes_all_exports(copy, said):
    ExportWorker(copy, said.append).remove_after(0)
    assert not copy.hugging_face.exists() or list(copy.hugging_face.iterdir()) == []


def test_a_step_whose_export_failed_is_tried_again_when_it_is_trained_again(copy, said):
    exporter = ExportWorker(copy, said.append)
    exporter.failures |= {3: "damaged", 6: "damaged"}
    exporter.remove_after(3)
    assert exporter.failures == {3: "damaged"}
