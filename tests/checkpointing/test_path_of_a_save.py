"""One save can be followed from the event to the disk: it passes few functions in few files."""

import sys
import threading
from pathlib import Path

import torch

from peakpoint.checkpointing.events import EpochEnd, StepEnd
from tests.checkpointing.policies import policy_cases as case
from tests.conftest import ROOT

FUNCTIONS, FILES = 40, 9
BY_PYTHON = ("<lambda>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")


def test_a_save_with_one_policy_passes_few_functions_in_few_files(world):
    run = world(interval=case.interval(epochs=1, keep_last=2))
    run.weight = torch.zeros(6 << 20)  # 24 MB, so that the disk begins before the end
    calls: list[tuple[str, str]] = []
    follows, durable = threading.Event(), threading.Event()

    def note(frame, event, _):
        code = frame.f_code
        if event != "call" or not follows.is_set() or durable.is_set() or code.co_name in BY_PYTHON:
            return
        file = Path(code.co_filename).resolve()
        if file.suffix == ".py" and file.is_relative_to(ROOT) and not {"tests", ".venv"} & set(file.parts):
            calls.append((file.relative_to(ROOT).as_posix(), code.co_qualname))
            if code.co_name == "fsync_directory":
                durable.set()

    threading.setprofile(note)  # of the writer's thread, which starts with the first save
    run.attempt(background=True)
    run.epoch(0.5)
    run.manager.drain()
    sys.setprofile(note)
    try:
        follows.set()
        run.manager.handle(StepEnd(2, 20), EpochEnd(2, 20))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    run.manager.drain()
    assert calls[0] == ("checkpointing/manager.py", "Manager.handle")
    assert calls[-1] == ("peakpoint/base/files.py", "fsync_directory")
    passed = sorted(set(calls))
    listing = "\n".join(f"{file}: {name}" for file, name in passed)
    assert len(passed) <= FUNCTIONS, listing
    assert len({file for file, _ in passed}) <= FILES, listing
