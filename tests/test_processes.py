import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mosaicbert.config import ConfigError
from mosaicbert.processes import count_cpus, map_in_order
from tests.data.corpus import wait_until_gone

_offset = 0


def _start(offset):
    global _offset
    _offset = offset


def _shift(number):
    return number + _offset


def _get_pid(_):
    return os.getpid()


def _kill_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _raise_at_three(number):
    if number == 3:
        raise ConfigError("three is not supported")
    return number


def _wait_long(seconds):
    time.sleep(seconds)


def test_results_are_in_the_order_of_the_items_and_workers_are_initialized():
    assert list(map_in_order(_shift, iter(range(50)), _start, (1000,))) == list(range(1000, 1050))


@pytest.mark.parametrize("num_items", [0, 1])
def test_a_single_item_is_processed_without_a_worker(num_items):
    assert list(map_in_order(_get_pid, range(num_items))) == [os.getpid()] * num_items


def test_only_a_few_items_are_prefetched():
    items = iter(range(1000))
    results = map_in_order(_shift, items)
    for _ in range(3):
        next(results)
    results.close()
    assert next(items) <= 3 * count_cpus() + 3


def test_an_exception_in_a_worker_is_raised_in_the_caller():
    with pytest.raises(ConfigError, match="three is not supported"):
        list(map_in_order(_raise_at_three, range(6)))


def test_a_killed_worker_raises_an_error_of_one_line_with_a_remedy():
    with pytest.raises(ConfigError, match="run the command again with fewer CPUs") as caught:
        list(map_in_order(_kill_at_three, range(6)))
    assert "\n" not in str(caught.value)


def test_closing_the_iterator_ends_all_workers():
    results = map_in_order(_get_pid, range(100))
    worker = psutil.Process(next(results))
    results.close()
    assert wait_until_gone([worker])


def test_busy_workers_end_when_their_parent_is_killed():
    code = "from tests.test_processes import *; from tests.test_processes import _wait_long\n"
    code += "list(map_in_order(_wait_long, [600] * 4))"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    workers = _wait_for_children(parent.pid)
    parent.kill()
    parent.wait()
    assert wait_until_gone(workers)


def _write_cgroups(root, lines, files):
    for name, content in {
        "proc/self/cgroup": lines,
        **{f"sys/fs/cgroup/{name}": files[name] for name in files},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


_CASES = {
    "v2": ("0::/pod/one", {"pod/one/cpu.max": "250000 100000"}, 3),
    "v2-ancestor": ("0::/pod/one", {"pod/cpu.max": "200000 100000", "pod/one/cpu.max": "max 100000"}, 2),
    "v2-of-the-host": ("0::/pod/one", {"cpu.max": "50000 100000"}, 1),
    "v2-unlimited": ("0::/", {"cpu.max": "max 100000"}, 8),
    "v2-more-than-affinity": ("0::/", {"cpu.max": "6400000 100000"}, 8),
    "v1": (
        "4:memory:/a\n3:cpu,cpuacct:/a",
        {"cpu,cpuacct/a/cpu.cfs_quota_us": "400000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
        4,
    ),
    "v1-unlimited": ("3:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    "none": ("", {}, 8),
}


@pytest.mark.parametrize(("lines", "files", "expected"), _CASES.values(), ids=_CASES)
def test_the_cpu_count_respects_the_quota_of_the_cgroups(tmp_path, monkeypatch, lines, files, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert count_cpus(_write_cgroups(tmp_path, lines, files)) == expected


def test_the_cpu_count_without_cgroups_is_the_affinity(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert count_cpus(tmp_path) == 8


def _wait_for_children(pid):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = psutil.Process(pid).children(recursive=True)
        # Children are the resource tracker and the workers, which sleep after their imports.
        busy = [child for child in children if child.cpu_times().user > 0.1 and child.status() == "sleeping"]
        if len(busy) >= count_cpus():
            return children
        time.sleep(0.02)
    raise AssertionError("the workers did not start within 30 seconds")
