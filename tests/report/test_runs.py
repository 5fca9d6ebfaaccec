import pytest

from mosaicbert.config import ConfigError
from mosaicbert.report.metrics import read_metrics
from mosaicbert.report.runs import read_runs
from tests.report.folders import ENTROPY, training_lines, write_lines, write_run


def test_a_truncated_last_line_is_ignored(tmp_path):
    run = write_run(tmp_path / "run", training_lines(3))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2, 3]


def test_a_run_with_a_result_is_finished(tmp_path):
    finished = write_run(tmp_path / "finished", training_lines(4))
    unfinished = write_run(tmp_path / "unfinished", training_lines(4, num_total_steps=8), is_finished=False)
    assert [run.is_finished for run in read_runs([finished, unfinished])] == [True, False]


def test_the_unigram_entropy_is_available_before_the_run_ends(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "run", training_lines(2), is_finished=False)])
    assert run.unigram_entropy == ENTROPY


def test_runs_are_labeled_by_their_recipes(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "folder", training_lines(2), run_name="name")])
    assert run.label == "name"


def test_runs_with_the_same_name_are_labeled_by_their_folders(tmp_path):
    folders = [write_run(tmp_path / parent / "same", training_lines(2)) for parent in ("a", "b")]
    folders.append(write_run(tmp_path / "other", training_lines(2)))
    assert [run.label for run in read_runs(folders)] == [str(folders[0]), str(folders[1]), "other"]


def test_duplicate_folders_are_one_run(tmp_path):
    run = write_run(tmp_path / "run", training_lines(2))
    other = write_run(tmp_path / "other", training_lines(2))
    assert [run.label for run in read_runs([run, other, tmp_path / "other" / ".." / "run"])] == ["run", "other"]


def test_lines_superseded_after_a_rollback_are_ignored(tmp_path):
    before, after = training_lines(6), training_lines(5, seed=1)
    (run,) = read_runs([write_run(tmp_path / "run", [*before, *after[3:]])])
    assert run.training == [*before[:3], *after[3:]]


def test_only_metrics_and_recipe_are_required(tmp_path):
    folder = write_run(tmp_path / "run", training_lines(2), is_finished=False)
    for name in ("environment.json", "store.json"):
        (folder / name).unlink()
    (run,) = read_runs([folder])
    assert (run.environment, run.unigram_entropy) == ({}, None)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("recipe.yaml", None, "must be a run folder"),
        ("recipe.yaml", "hiden: 3\n", "unknown key"),
        ("metrics.jsonl", None, "must have a training line"),
        ("metrics.jsonl", '{"step": 0, "eval_loss": 6.0}\n', "must have a training line"),
        ("metrics.jsonl", '{"step": 1, "lo\n{"step": 2, "loss": 1.0}\n', "is not valid JSON Lines"),
        ("metrics.jsonl", "{}\n", "line 1, must be an object with `step`"),
        ("faults.jsonl", "3\n", "line 1, must be an object with `step`"),
        ("environment.json", "{", "is not valid JSON"),
        ("result.json", "[]\n", "must be a JSON object"),
    ],
)
def test_an_invalid_file_is_an_error_of_one_line_with_its_path(tmp_path, file, content, message):
    run = write_run(tmp_path / "run", training_lines(2))
    (run / file).unlink(missing_ok=True)
    if content is not None:
        (run / file).write_text(content)
    with pytest.raises(ConfigError, match=message) as raised:
        read_runs([run])
    assert str(run) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_folder_is_an_error_with_its_path(tmp_path):
    with pytest.raises(ConfigError, match="nowhere must be a run folder"):
        read_runs([tmp_path / "nowhere"])


def test_at_least_one_folder_is_required():
    with pytest.raises(ConfigError, match="At least one run folder must be given"):
        read_runs([])


def test_faults_are_read_in_order(tmp_path):
    faults = [{"step": 2, "kind": "skipped", "reason": "x"}, {"step": 1, "kind": "rollback", "reason": "y"}]
    folder = write_run(tmp_path / "run", training_lines(2))
    write_lines(folder / "faults.jsonl", faults)
    assert read_runs([folder])[0].faults == faults
