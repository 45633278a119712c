"""The threads beside the training take no OpenMP threads, and leave everybody else's settings alone."""

import json
import threading
from pathlib import Path

import torch

from peakpoint.base import threads
from tests.conftest import ROOT, TINY, process

# A policy that saves ten times, then looks at the process once all is written.
WATCH = """
import json, os, threading, time
from dataclasses import dataclass
import torch
from peakpoint.checkpointing.events import StepEnd
from peakpoint import register
from peakpoint.checkpointing.policy import Policy, Save

@register("policy", "watch")
@dataclass(kw_only=True)
class Watch(Policy):
    tags = ("watched",)
    file: str = "threads.json"

    def __post_init__(self):
        self.seen = {}

    def decide(self, event):
        if not isinstance(event, StepEnd):
            return []
        if event.step == 3:
            self.look("before")
        if event.step == 15:
            time.sleep(0.5)
            self.look("after")
        return [Save("watched", "to see")] if 3 <= event.step < 13 else []

    def look(self, when):
        at = []
        thread = threading.Thread(target=lambda: at.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        counts = []
        for _ in range(20):  # a thread that was joined is there for a moment longer
            time.sleep(0.01)
            counts.append(len(os.listdir("/proc/self/task")))
        number = min(counts)
        self.seen[when] = {"threads": number, "training": torch.get_num_threads(), "others": at[0]}
        open(self.file, "w").write(json.dumps(self.seen))
"""


def watched(tmp_path: Path) -> dict[str, dict[str, int]]:
    """What the process looked like before the first and after the tenth save, trained with two threads."""
    (tmp_path / "watch.py").write_text(WATCH)
    wide = ("data.native_size=32", "threads=2", "test=false", "epochs=2", f"hydra.run.dir={tmp_path / 'run'}")
    asked = ("plugins=[watch]", "checkpoint/policy=[watch]")
    done = process(
        ROOT / "train.py",
        *TINY,
        *wide,
        *asked,
        cwd=tmp_path,
        OMP_NUM_THREADS="2",
        PYTHONPATH=f"{ROOT}:{tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved training/") >= 10
    seen: dict[str, dict[str, int]] = json.loads((tmp_path / "threads.json").read_text())
    return seen


def test_ten_background_saves_add_the_writer_s_thread_and_no_team_of_openmp(tmp_path):
    seen = watched(tmp_path)
    assert seen["after"]["threads"] == seen["before"]["threads"] + 1
    assert seen["before"] == seen["after"] | {"threads": seen["before"]["threads"]}
    assert (seen["after"]["training"], seen["after"]["others"]) == (2, 2)


def test_each_background_thread_computes_alone_and_nobody_else_does():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threads.pool("one") as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
            seen: list[int] = []
            thread = threads.thread(lambda: seen.append(torch.get_num_threads()), "two")
            thread.start()
            thread.join()
            assert seen == [1]
            assert thread.daemon
            later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            later.start()
            later.join()
            assert seen == [1, 3]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
