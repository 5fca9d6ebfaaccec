"""Checkpointer: checkpoints that are not removed, and a full disk."""

from mosaicbert.train.checkpoint.format import list_checkpoints, step_of
from mosaicbert.train.run_folder import RunFolder
from tests.recipes import tiny_recipe
from tests.train.running import finish, start, steps_of, train_here

_NUM_STEPS = 20


def _recipe(folder, source, **checkpoint):
    return tiny_recipe(
        folder,
        source,
        train={"duration": f"{_NUM_STEPS} steps"},
        checkpoint={"interval": "5 steps"} | checkpoint,
        eval={"interval": "20 steps", "fill_mask": []},
    )


def test_the_last_checkpoints_and_every_nth_checkpoint_are_not_removed(source, tmp_path):
    run = train_here(_recipe(tmp_path, source, interval="2 steps", keep_last=2, keep_every=3))
    assert [step_of(path) for path in list_checkpoints(run.checkpoints)] == [6, 12, 18, 20]


def test_a_run_trains_to_its_end_although_checkpoints_cannot_be_written(source, tmp_path):
    recipe = _recipe(tmp_path, source)
    train_here(recipe, stop_after=3)

    # Maximum size of a file in bytes, larger than the metrics and smaller than the weights.
    process = start(recipe, command=("-c", _LIMITED), LIMIT=str(100_000))
    output = finish(process, code=1)
    run = RunFolder(recipe.run_folder)
    assert "cannot be written" in output
    assert "Free disk space" in output
    assert steps_of(run)[-1]["step"] == _NUM_STEPS
    assert [step_of(path) for path in list_checkpoints(run.checkpoints)] == [3]
    assert not list(run.checkpoints.glob("*.partial"))


_LIMITED = """
import os, resource, sys
limit = int(os.environ["LIMIT"])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from mosaicbert.cli import main
main(["pretrain", *sys.argv[1:]])
"""
