import json

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from triton.runtime.errors import OutOfResources

from mosaicbert.ops import autotune
from mosaicbert.ops.autotune import TileConfig

WIDE, NARROW = TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2)
KEY = ("example GPU", "3.6", "kernel", "64")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(autotune, "_selected", {})
    return tmp_path


def test_a_choice_is_cached_on_disk():
    assert autotune._read_cached(KEY, [WIDE, NARROW]) is None
    assert autotune._write_cached(KEY, NARROW, [WIDE, NARROW]) == NARROW
    assert autotune._read_cached(KEY, [WIDE, NARROW]) == NARROW


def test_the_first_cached_choice_is_kept():
    autotune._write_cached(KEY, NARROW, [WIDE, NARROW])
    assert autotune._write_cached(KEY, WIDE, [WIDE, NARROW]) == NARROW


@pytest.mark.parametrize("content", [json.dumps(TileConfig(1, 1, 1, 1)._asdict()), "", "{", "[]"])
def test_a_corrupted_or_outdated_cache_file_is_replaced(content):
    autotune._write_cached(KEY, NARROW, [WIDE, NARROW])
    autotune._cache_path(KEY).write_text(content)
    assert autotune._read_cached(KEY, [WIDE, NARROW]) is None
    assert autotune._write_cached(KEY, WIDE, [WIDE, NARROW]) == WIDE
    assert autotune._read_cached(KEY, [WIDE, NARROW]) == WIDE


def test_a_choice_is_returned_without_a_writable_cache(cache, monkeypatch):
    (cache / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    assert autotune._write_cached(KEY, WIDE, [WIDE, NARROW]) == WIDE


def test_the_fastest_candidate_that_fits_is_selected(monkeypatch):
    times = {WIDE: 2.0, NARROW: 1.0}
    launched = []
    monkeypatch.setattr(autotune, "do_bench", lambda call, **_: call())

    def launch(candidate):
        launched.append(candidate)
        if candidate not in times:
            raise OutOfResources(300_000, 200_000, "shared memory")
        return times[candidate]

    candidates = [TileConfig(256, 256, 8, 2), WIDE, NARROW]
    assert autotune.choose_tile_config(object(), (64,), candidates, launch) == NARROW
    assert autotune.choose_tile_config(object(), (64,), candidates, launch) == NARROW
    assert launched == candidates  # the second call uses the cached choice


def test_candidates_that_all_exceed_the_gpu_are_an_error(monkeypatch):
    monkeypatch.setattr(autotune, "do_bench", lambda call, **_: call())

    def launch(_):
        raise OutOfResources(300_000, 200_000, "shared memory")

    with pytest.raises(RuntimeError, match="must fit this GPU, got 2 that exceed its resources"):
        autotune.choose_tile_config(object(), (), [WIDE, NARROW], launch)
