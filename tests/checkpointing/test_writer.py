"""One save in flight, and no error lost."""

import threading
import time

import pytest

from peakpoint.checkpointing.writer import Writer


def test_a_job_runs_beside_the_training_thread():
    writer, release, names = Writer(background=True), threading.Event(), []

    def job():
        release.wait(30)
        names.append(threading.current_thread().name)

    writer.submit(job)
    assert names == []  # submit has returned and the job has not
    release.set()
    writer.wait()
    assert names[0].startswith("checkpoint-writer")
    writer.close()


def test_it_is_busy_until_the_work_is_done():
    writer, release = Writer(background=True), threading.Event()

    def job():
        release.wait(30)

    assert not writer.busy
    writer.submit(job)
    assert writer.busy
    release.set()
    until = time.monotonic() + 10
    while writer.busy and time.monotonic() < until:
        time.sleep(0.001)
    assert not writer.busy
    writer.close()


def test_the_second_waits_for_the_first():
    writer, release, order = Writer(background=True), threading.Event(), []

    def first():
        release.wait(30)
        order.append("first written")

    writer.submit(first)
    submitting = threading.Thread(
        target=lambda: (writer.submit(lambda: order.append("second written")), order.append("submitted"))
    )
    submitting.start()
    submitting.join(0.05)
    assert submitting.is_alive()
    assert order == []
    release.set()
    submitting.join(30)
    writer.close()
    assert order[0] == "first written"
    assert sorted(order[1:]) == ["second written", "submitted"]


def test_without_a_thread_a_job_is_done_when_submit_returns():
    writer, names = Writer(background=False), []
    writer.submit(lambda: names.append(threading.current_thread()))
    assert names == [threading.current_thread()]
    writer.wait()
    writer.close()


@pytest.mark.parametrize("then", ["wait", "submit", "close"])
def test_an_exception_comes_out_once(then):
    writer = Writer(background=True)

    def broken():
        raise RuntimeError("a bug")

    writer.submit(broken)
    with pytest.raises(RuntimeError, match="a bug"):
        writer.submit(lambda: None) if then == "submit" else getattr(writer, then)()
    writer.wait()
    writer.close()


def test_close_ends_the_thread_after_the_job():
    before = threading.active_count()
    writer, done = Writer(background=True), []
    writer.submit(lambda: done.append(1))
    writer.close()
    assert done == [1]
    assert threading.active_count() == before
