"""Tests of the job queue: order, retries, dependencies and cancellation."""

import os

import psutil
import pytest

from mosaicbert.scoring.job_queue import Job, JobQueue
from tests.scoring.work import run_payload

_ONE_WORKER = [{"WORKER": "a"}]


def _run(jobs, environments=_ONE_WORKER):
    with JobQueue(run_payload, environments) as queue:
        queue.add(jobs)
        return [event for event in queue.events() if event is not None]


def _kinds(events):
    return [(event.job.name, event.kind) for event in events]


def test_jobs_run_in_order_and_return_their_results():
    events = _run([Job(name=str(number), payload=number) for number in range(3)])
    assert [event.result for event in events if event.kind == "done"] == [0, 2, 4]
    assert _kinds(events) == [(name, kind) for name in "012" for kind in ("started", "done")]


def test_a_job_that_raises_is_retried_once_and_other_jobs_continue():
    events = _run([Job(name="invalid", payload="fail"), Job(name="valid", payload=1)])
    kinds = [kind for name, kind in _kinds(events) if name == "invalid"]
    assert kinds == ["started", "retried", "started", "failed"]
    assert [event.result for event in events if event.kind == "done"] == [2]
    (failed,) = [event for event in events if event.kind == "failed"]
    assert failed.reason == "ValueError: first line"
    assert "in run_payload" in failed.details


def test_a_process_that_exits_is_replaced_and_its_job_is_retried(tmp_path):
    events = _run(
        [
            Job(name="always", payload="die"),
            Job(name="once", payload=tmp_path / "attempted"),
            Job(name="never", payload=4),
        ]
    )
    results = {event.job.name: event.result for event in events if event.kind == "done"}
    assert results == {"once": "second attempt", "never": 8}
    (failed,) = [event for event in events if event.kind == "failed"]
    assert (failed.job.name, failed.reason) == ("always", "its process exited with code 3")


def test_a_job_waits_for_its_dependency_and_is_skipped_if_it_fails():
    jobs = [
        Job(name="second", payload=2, depends_on="first"),
        Job(name="third", payload=3, depends_on="second"),
        Job(name="blocked", payload=4, depends_on="invalid"),
        Job(name="also blocked", payload=5, depends_on="blocked"),
        Job(name="first", payload=1),
        Job(name="invalid", payload="fail"),
    ]
    events = _run(jobs)
    assert [event.job.name for event in events if event.kind == "done"] == ["first", "second", "third"]
    skip_reasons = {event.job.name: event.reason for event in events if event.kind == "skipped"}
    assert skip_reasons == {
        "blocked": "it depends on invalid, which has failed",
        "also blocked": "it depends on blocked, which has failed",
    }


def test_each_process_has_its_environment_variables_and_is_reused(monkeypatch):
    monkeypatch.setenv("WORKER", "parent")
    jobs = [Job(name=str(number), payload="where") for number in range(4)]
    events = _run(jobs, [{"WORKER": "a"}, {"WORKER": "b"}])
    results = {event.result for event in events if event.kind == "done"}
    assert {worker for worker, _ in results} == {"a", "b"}
    assert len(results) == 2  # pairs of variable and process id
    assert os.environ["WORKER"] == "parent"


def test_a_process_that_exits_while_idle_is_replaced():
    with JobQueue(run_payload, _ONE_WORKER * 2) as queue:
        queue.add(
            [
                Job(name="quick", payload=1),
                Job(name="where", payload="where"),
                Job(name="after", payload=2, depends_on="where"),
            ]
        )
        results = {}
        for event in queue.events():
            if event is not None and event.kind == "done":
                results[event.job.name] = event.result
                if event.job.name == "quick":
                    for worker in queue._workers:
                        if worker.job is None:
                            worker.process.kill()
                            worker.process.join()
    assert results.keys() == {"quick", "where", "after"}
    assert results["after"] == 4


def test_jobs_can_be_added_while_others_run():
    with JobQueue(run_payload, _ONE_WORKER) as queue:
        queue.add([Job(name="first", payload=1)])
        results = []
        for event in queue.events():
            if event is not None and event.kind == "done":
                results.append(event.result)
                if event.job.name == "first":
                    queue.add([Job(name="added", payload=21)])
    assert results == [2, 42]


def test_a_retried_job_runs_before_pending_jobs(tmp_path):
    jobs = [Job(name="once", payload=tmp_path / "attempted"), Job(name="x", payload=1), Job(name="y", payload=2)]
    assert [name for name, kind in _kinds(_run(jobs)) if kind == "done"] == ["once", "x", "y"]


def test_cancelled_jobs_do_not_run_and_their_names_can_be_used_again():
    with JobQueue(run_payload, _ONE_WORKER) as queue:
        queue.add(
            [
                Job(name="invalid", payload="fail"),
                Job(name="x", payload=1),
                Job(name="dependent", payload=2, depends_on="invalid"),
            ]
        )
        results = {}
        for event in queue.events():
            if event is not None and event.kind == "failed":
                queue.cancel({"invalid", "dependent"})
                queue.add([Job(name="dependent", payload=5, depends_on="invalid"), Job(name="invalid", payload=4)])
            if event is not None and event.kind == "done":
                results[event.job.name] = event.result
    assert results == {"x": 2, "invalid": 8, "dependent": 10}


def test_the_result_of_a_cancelled_job_is_discarded():
    with JobQueue(run_payload, _ONE_WORKER) as queue:
        queue.add([Job(name="slow", payload="where"), Job(name="after", payload=3, depends_on="slow")])
        results = []
        for event in queue.events():
            if event is not None and event.kind == "started" and event.job.payload == "where":
                queue.cancel(["slow", "after"])
                queue.add([Job(name="slow", payload=2)])
            if event is not None and event.kind == "done":
                results.append(event.result)
    assert results == [4]


def test_leaving_the_context_stops_running_jobs():
    with pytest.raises(KeyboardInterrupt), JobQueue(run_payload, _ONE_WORKER) as queue:
        queue.add([Job(name="long", payload="long")])
        for event in queue.events():
            if event is None:
                ((job, seconds),) = queue.running
                assert job.name == "long" and seconds >= 0
                children = [child for child in psutil.Process().children() if "spawn_main" in str(child.cmdline())]
                assert len(children) == 1
                raise KeyboardInterrupt
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
