import pytest

from mosaicbert.config import ConfigError
from mosaicbert.report.metrics import read_metrics
from mosaicbert.report.runs import read_runs
from tests.report.folders import ENTROPY, training_lines, write_lines, write_run


def test_a_last_line_that_a_crash_cut_off_is_dropped(tmp_path):
    run = write_run(tmp_path / "run", training_lines(3))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2, 3]


def test_a_finished_run_and_one_in_progress_are_told_apart(tmp_path):
    done = write_run(tmp_path / "done", training_lines(4))
    going = write_run(tmp_path / "going", training_lines(4, of_steps=8), finished=False)
    assert [run.finished for run in read_runs([done, going])] == [True, False]


def test_the_unigram_entropy_is_known_before_the_run_ends(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "run", training_lines(2), finished=False)])
    assert run.unigram_entropy == ENTROPY


def test_runs_are_named_by_their_recipes(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "folder", training_lines(2), run_name="name")])
    assert run.label == "name"


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    folders = [write_run(tmp_path / place / "same", training_lines(2)) for place in ("a", "b")]
    folders.append(write_run(tmp_path / "other", training_lines(2)))
    assert [run.label for run in read_runs(folders)] == [str(folders[0]), str(folders[1]), "other"]


def test_a_folder_given_twice_is_one_run(tmp_path):
    run = write_run(tmp_path / "run", training_lines(2))
    other = write_run(tmp_path / "other", training_lines(2))
    assert [run.label for run in read_runs([run, other, tmp_path / "other" / ".." / "run"])] == ["run", "other"]


def test_what_a_rollback_took_back_is_left_out(tmp_path):
    before, after = training_lines(6), training_lines(5, seed=1)
    (run,) = read_runs([write_run(tmp_path / "run", [*before, *after[3:]])])
    assert run.training == [*before[:3], *after[3:]]


def test_a_folder_with_only_metrics_and_recipe_is_enough(tmp_path):
    folder = write_run(tmp_path / "run", training_lines(2), finished=False)
    for name in ("environment.json", "store.json"):
        (folder / name).unlink()
    (run,) = read_runs([folder])
    assert (run.environment, run.unigram_entropy) == ({}, None)


@pytest.mark.parametrize(
    "file, content, said",
    [
        ("recipe.yaml", None, "no run folder"),
        ("recipe.yaml", "hiden: 3\n", "unknown key"),
        ("metrics.jsonl", None, "no training line yet"),
        ("metrics.jsonl", '{"step": 0, "eval_loss": 6.0}\n', "no training line yet"),
        ("metrics.jsonl", '{"step": 1, "lo\n{"step": 2, "loss": 1.0}\n', "damaged"),
        ("metrics.jsonl", "{}\n", "line 1 has no step"),
        ("faults.jsonl", "3\n", "line 1 has no step"),
        ("environment.json", "{", "damaged"),
        ("result.json", "[]\n", "no JSON object"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line_with_its_name(tmp_path, file, content, said):
    run = write_run(tmp_path / "run", training_lines(2))
    (run / file).unlink(missing_ok=True)
    if content is not None:
        (run / file).write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read_runs([run])
    assert str(run) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_refused_with_its_name(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: no run folder"):
        read_runs([tmp_path / "nowhere"])


def test_a_report_about_nothing_is_refused():
    with pytest.raises(ConfigError, match="no run folder is given"):
        read_runs([])


def test_faults_are_read_in_their_order(tmp_path):
    faults = [{"step": 2, "kind": "skipped", "reason": "x"}, {"step": 1, "kind": "rollback", "reason": "y"}]
    folder = write_run(tmp_path / "run", training_lines(2))
    write_lines(folder / "faults.jsonl", faults)
    assert read_runs([folder])[0].faults == faults
