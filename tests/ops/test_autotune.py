import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from mosaicbert.ops import autotune
from mosaicbert.ops.autotune import MAX_STACK_BYTES, TileConfig, find_defect

WIDE, NARROW = TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2)
KEY = ("example GPU", "3.6", "kernel", "64")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(autotune, "_selected", {})
    monkeypatch.setattr(autotune, "_working", {})
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


@dataclass
class CompiledKernel:
    """The attributes of Triton's class that autotuning reads. The original requires a GPU."""

    time: float = 1.0
    n_spills: int = 0
    ptx: str = "wgmma.mma_async.sync"
    architecture: int = 90

    @property
    def asm(self):
        return {"ptx": self.ptx}

    @property
    def metadata(self):
        return SimpleNamespace(target=SimpleNamespace(arch=self.architecture))


def make_launch(results):
    """Return a function that launches a candidate, and the list of launched candidates."""
    launched = []

    def launch(candidate):
        launched.append(candidate)
        if isinstance(results[candidate], Exception):
            raise results[candidate]
        return results[candidate]

    return launch, launched


@pytest.fixture
def measured(monkeypatch):
    """Replace the timing on a GPU by the time of the compiled kernel. Return the list of the measured ones."""
    measured = []

    def do_bench(call, **_):
        measured.append(call())
        return measured[-1].time

    monkeypatch.setattr(autotune, "do_bench", do_bench)
    return measured


FAILURES = [
    OutOfResources(300_000, 200_000, "shared memory"),
    PTXASError("ptxas fatal: unsupported"),
    CompilationError("source", None, "unsupported layout"),
    RuntimeError("Triton Error [CUDA]: invalid argument"),
    AssertionError(),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_the_fastest_candidate_that_works_is_selected(failure, measured):
    broken = TileConfig(256, 256, 8, 2)
    launch, launched = make_launch({broken: failure, WIDE: CompiledKernel(2.0), NARROW: CompiledKernel(1.0)})
    assert autotune.choose_tile_config(object(), (64,), [broken, WIDE, NARROW], launch) == NARROW
    num_launches = len(launched)
    assert autotune.choose_tile_config(object(), (64,), [broken, WIDE, NARROW], launch) == NARROW
    assert len(launched) == num_launches  # the second call uses the cached choice
    assert len(measured) == 2


def test_candidates_that_all_fail_are_an_error(measured):
    launch, _ = make_launch({WIDE: FAILURES[0], NARROW: FAILURES[3]})
    with pytest.raises(RuntimeError, match=r"must work on this GPU, got 2 that fail .*shared memory.*invalid argument"):
        autotune.choose_tile_config(object(), (), [WIDE, NARROW], launch)
    assert not measured


@pytest.mark.parametrize(
    "compiled",
    [CompiledKernel(1.0, n_spills=170), CompiledKernel(1.0, ptx="mma.sync.aligned")],
    ids=["spills-680-bytes", "without-wgmma"],
)
def test_a_candidate_with_a_defect_is_not_measured(compiled, measured):
    launch, _ = make_launch({WIDE: compiled, NARROW: CompiledKernel(2.0)})
    assert autotune.choose_tile_config(object(), (), [WIDE, NARROW], launch) == NARROW
    assert compiled not in measured


def test_candidates_that_all_have_a_defect_are_measured(measured):
    launch, _ = make_launch({WIDE: CompiledKernel(2.0, n_spills=170), NARROW: CompiledKernel(1.0, n_spills=100)})
    assert autotune.choose_tile_config(object(), (), [WIDE, NARROW], launch) == NARROW
    assert len(measured) == 2


@pytest.mark.parametrize(
    "stack_bytes, ptx, architecture, is_defect",
    [
        (MAX_STACK_BYTES, "", 80, False),
        (MAX_STACK_BYTES + 4, "", 80, True),
        (0, "mma.sync", 90, True),
        (0, "mma.sync wgmma", 90, False),
        (0, "mma.sync", 80, False),
        (0, "mma.sync", 120, False),
        (0, "", 90, False),
    ],
)
def test_defects_are_large_stacks_and_on_hopper_products_without_wgmma(stack_bytes, ptx, architecture, is_defect):
    assert (find_defect(stack_bytes, ptx, architecture) is not None) == is_defect


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_small_launch_uses_the_first_candidate_that_works_and_does_not_repeat_failures(failure):
    launch, launched = make_launch({WIDE: failure, NARROW: CompiledKernel()})
    for _ in range(2):
        autotune.launch_first_working(object(), (64,), [WIDE, NARROW], launch)
    assert launched == [WIDE, NARROW, NARROW]


def test_small_launches_that_all_fail_are_an_error():
    launch, _ = make_launch({WIDE: FAILURES[0], NARROW: FAILURES[3]})
    with pytest.raises(RuntimeError, match="must work on this GPU, got 2 that fail"):
        autotune.launch_first_working(object(), (), [WIDE, NARROW], launch)
