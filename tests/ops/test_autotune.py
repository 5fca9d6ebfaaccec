import json

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from triton.runtime.errors import OutOfResources

from mosaicbert.ops import autotune
from mosaicbert.ops.autotune import TileConfig

WIDE, NARROW = TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2)
KEY = ("some GPU", "3.6", "kernel", "64")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(autotune, "_selected", {})
    return tmp_path


def test_a_choice_is_remembered():
    assert autotune._read_cached(KEY, [WIDE, NARROW]) is None
    assert autotune._write_cached(KEY, NARROW, [WIDE, NARROW]) == NARROW
    assert autotune._read_cached(KEY, [WIDE, NARROW]) == NARROW


def test_processes_agree_on_the_choice_of_the_first():
    autotune._write_cached(KEY, NARROW, [WIDE, NARROW])
    assert autotune._write_cached(KEY, WIDE, [WIDE, NARROW]) == NARROW


@pytest.mark.parametrize("content", [json.dumps(TileConfig(1, 1, 1, 1)._asdict()), "", "{", "[]"])
def test_a_file_of_another_version_or_a_damaged_one_is_replaced(content):
    autotune._write_cached(KEY, NARROW, [WIDE, NARROW])
    autotune._cache_path(KEY).write_text(content)
    assert autotune._read_cached(KEY, [WIDE, NARROW]) is None
    assert autotune._write_cached(KEY, WIDE, [WIDE, NARROW]) == WIDE
    assert autotune._read_cached(KEY, [WIDE, NARROW]) == WIDE


def test_without_a_place_to_write_a_process_goes_on_with_its_choice(cache, monkeypatch):
    (cache / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    assert autotune._write_cached(KEY, WIDE, [WIDE, NARROW]) == WIDE


def test_the_fastest_is_taken_and_what_does_not_fit_is_passed_over(monkeypatch):
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
    assert launched == candidates  # the second time it is known


def test_a_gpu_that_nothing_fits_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(autotune, "do_bench", lambda call, **_: call())

    def launch(_):
        raise OutOfResources(300_000, 200_000, "shared memory")

    with pytest.raises(RuntimeError, match="none of 2 tilings fits this GPU"):
        autotune.choose_tile_config(object(), (), [WIDE, NARROW], launch)
