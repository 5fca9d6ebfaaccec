from pathlib import Path

import pytest

from mosaicbert.config.pareto import ParetoRecipe, SeriesConfig
from tests.pareto.scored import FIVE_TASKS, make_scores, pareto_recipe, write_scores


@pytest.fixture
def two_runs(tmp_path, monkeypatch) -> ParetoRecipe:
    """Create a run of two checkpoints, and a run with lower scores at higher cost than the second checkpoint."""
    monkeypatch.chdir(tmp_path)
    write_scores(Path("runs/a"), make_scores(100, 3600.0, 70.0, tasks=FIVE_TASKS))
    write_scores(Path("runs/a"), make_scores(900, 9 * 3600.0, 80.0, tasks=FIVE_TASKS))
    write_scores(Path("runs/[b]"), make_scores(500, 10 * 3600.0, 75.0, tasks=(*FIVE_TASKS, "qnli")))
    return pareto_recipe(
        Path("runs"),
        {
            "Ours": SeriesConfig(runs=["runs/a"], devices=2, dollars_per_device_hour=3.0),
            "Theirs": SeriesConfig(runs=["runs/[b]"]),
        },
    )
