"""Disk space for checkpoints."""

import pytest

from mosaicbert.config import ConfigError
from mosaicbert.train.checkpoint.disk_space import check_disk_space
from tests.recipes import tiny_recipe
from tests.train.running import train_here


def test_a_disk_without_space_for_the_checkpoints_is_an_error(source, tmp_path):
    run = train_here(tiny_recipe(tmp_path, source), stop_after=1)
    with pytest.raises(ConfigError, match=r"for 3 checkpoints and their exports, got .* GiB free\. Free disk space"):
        check_disk_space(run, num_parameters=10**15, keep_last=2)
