"""Jobs over processes: what fails is tried again, and nothing else stops for it."""

import os

import psutil
import pytest

from mosaicbert.finetune.glue.job_queue import Job, JobQueue
from tests.finetune.glue.work import run_payload

_ONE_WORKER = [{"PLACE": "here"}]


def _run(jobs, environments=_ONE_WORKER):
    with JobQueue(run_payload, environments) as queue:
        queue.add(jobs)
        return [event for event in queue.events() if event is not None]


def _kinds(events):
    return [(event.job.name, event.kind) for event in events]


def test_jobs_are_done_in_their_order_and_give_their_results():
    events = _run([Job(name=str(number), payload=number) for number in range(3)])
    assert [event.result for event in events if event.kind == "done"] == [0, 2, 4]
    assert _kinds(events) == [(name, kind) for name in "012" for kind in ("started", "done")]


def test_a_job_that_raises_is_tried_again_once_and_the_others_go_on():
    events = _run([Job(name="bad", payload="fail"), Job(name="good", payload=1)])
    assert [kind for name, kind in _kinds(events) if name == "bad"] == ["started", "retried", "started", "failed"]
    assert [event.result for event in events if event.kind == "done"] == [2]
    (failed,) = [event for event in events if event.kind == "failed"]
    assert failed.reason == "ValueError: as asked"
    assert "in do" in failed.details


def test_a_process_that_dies_is_replaced_and_its_job_tried_again(tmp_path):
    events = _run(
        [Job(name="bad", payload="die"), Job(name="shaky", payload=tmp_path / "mark"), Job(name="x", payload=4)]
    )
    results = {event.job.name: event.result for event in events if event.kind == "done"}
    assert results == {"shaky": "at last", "x": 8}
    (failed,) = [event for event in events if event.kind == "failed"]
    assert (failed.job.name, failed.reason) == ("bad", "its process ended with 3")


def test_a_job_waits_for_what_it_needs_and_is_left_out_if_that_fails():
    jobs = [
        Job(name="second", payload=2, depends_on="first"),
        Job(name="third", payload=3, depends_on="second"),
        Job(name="lost", payload=4, depends_on="bad"),
        Job(name="lost as well", payload=5, depends_on="lost"),
        Job(name="first", payload=1),
        Job(name="bad", payload="fail"),
    ]
    events = _run(jobs)
    assert [event.job.name for event in events if event.kind == "done"] == ["first", "second", "third"]
    skip_reasons = {event.job.name: event.reason for event in events if event.kind == "skipped"}
    assert skip_reasons == {
        "lost": "it needs bad, which has failed",
        "lost as well": "it needs lost, which has failed",
    }


def test_each_process_has_its_variables_and_this_one_keeps_its_own(monkeypatch):
    monkeypatch.setenv("PLACE", "mine")
    jobs = [Job(name=str(number), payload="where") for number in range(4)]
    results = {event.result for event in _run(jobs, [{"PLACE": "a"}, {"PLACE": "b"}]) if event.kind == "done"}
    assert {place for place, _ in results} == {"a", "b"}
    assert len(results) == 2  # a process lives on for the next job
    assert os.environ["PLACE"] == "mine"


def test_a_process_that_dies_while_it_waits_is_replaced():
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


def test_jobs_may_be_added_while_others_run():
    with JobQueue(run_payload, _ONE_WORKER) as queue:
        queue.add([Job(name="first", payload=1)])
        results = []
        for event in queue.events():
            if event is not None and event.kind == "done":
                results.append(event.result)
                if event.job.name == "first":
                    queue.add([Job(name="added", payload=21)])
    assert results == [2, 42]


def test_what_is_tried_again_comes_first_since_others_may_wait_for_it(tmp_path):
    jobs = [Job(name="shaky", payload=tmp_path / "mark"), Job(name="x", payload=1), Job(name="y", payload=2)]
    assert [name for name, kind in _kinds(_run(jobs)) if kind == "done"] == ["shaky", "x", "y"]


def test_cancelled_jobs_are_not_done_and_others_may_have_their_names():
    with JobQueue(run_payload, _ONE_WORKER) as queue:
        queue.add(
            [Job(name="bad", payload="fail"), Job(name="x", payload=1), Job(name="needy", payload=2, depends_on="bad")]
        )
        results = {}
        for event in queue.events():
            if event is not None and event.kind == "failed":
                queue.cancel({"bad", "needy"})
                queue.add([Job(name="needy", payload=5, depends_on="bad"), Job(name="bad", payload=4)])
            if event is not None and event.kind == "done":
                results[event.job.name] = event.result
    assert results == {"x": 2, "bad": 8, "needy": 10}


def test_the_result_of_a_cancelled_job_is_dropped():
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


def test_leaving_ends_what_is_under_way():
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
