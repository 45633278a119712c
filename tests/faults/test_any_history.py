"""Any history of saves, crashes, damage, retention and restarts, against a model of what must be there."""

import errno
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from peakpoint.checkpointing.storage import listing, locate, quarantine, store
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import damage, manifest
from tests.faults.fault_cases import Faulty, in_child, put, sound, tidy


class History(RuleBasedStateMachine):
    """`promised`: values whose save returned. `possible`: those whose save or deletion
    was cut short."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.value = 0
        self.promised: set[int] = set()
        self.possible: set[int] = set()
        self.resume()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def settle(self) -> None:
        """What was cut short is either there, whole, or not: a reader of the folder decides."""
        for each in listing.manifests(self.root):
            if each.epoch in self.possible:
                self.promised.add(each.epoch)
        self.possible.clear()

    @rule()
    def save(self) -> None:
        self.value += 1
        put(self.store, self.value)
        self.promised.add(self.value)

    @rule()
    def share(self) -> None:
        newest = locate.newest_verified(self.root).manifest
        if newest:
            name = self.store.free_name("milestone", "best")
            self.store.share(newest, manifest(name, epoch=newest.epoch))
            self.store.set_pointer("milestone", "best", newest)

    @rule(at=st.integers(1, 45), how=st.sampled_from(["kill", "torn", errno.ENOSPC, errno.EIO]))
    def crash(self, at: int, how: str | int) -> None:
        """A save, and the retention after it, in a process that is killed, or fails."""
        self.value += 1
        kept = self.promised.copy()

        def work(say) -> None:
            target = Store(self.root, "run")
            done = put(target, self.value)
            say("saved")
            store.verify(self.root, done)
            for each in listing.manifests(self.root):
                if each.epoch in kept and each.epoch < self.value - 3:
                    say(f"{each.epoch}")
                    target.delete(each)

        _, stated = in_child(work, Faulty(at, how))
        for line in stated:
            if line == "saved":
                self.promised.add(self.value)
            elif line.isdigit():
                self.promised.discard(int(line))
                self.possible.add(int(line))
        if "saved" not in stated:
            self.possible.add(self.value)
        self.resume()

    @precondition(lambda self: len(self.promised) > 1)
    @rule(flip=st.booleans(), end=st.sampled_from([".pt", ".json"]))
    def corrupt(self, *, flip: bool, end: str) -> None:
        """The newest rots on the disk, under all of its names."""
        newest = listing.manifests(self.root)[-1]
        for each in listing.manifests(self.root):
            if each.epoch == newest.epoch:
                damage((self.root / each.file).with_suffix(end), flip=flip)
        self.promised.discard(newest.epoch)
        self.find()

    @rule(keep=st.integers(1, 3))
    def collect(self, keep: int) -> None:
        """Retention: all but the newest few go, once the newest is seen to be sound."""
        found = listing.manifests(self.root)
        doomed = {m.epoch for m in found} - set(sorted({m.epoch for m in found})[-keep:])
        if found:
            store.verify(self.root, found[-1])
        for each in found:
            if each.epoch in doomed:
                self.store.delete(each)
                self.promised.discard(each.epoch)

    @rule()
    def resume(self) -> None:
        """A new process: sweeps, and goes on from the newest that verifies."""
        self.store = Store(self.root, "run")
        self.settle()
        assert tidy(self.root)
        self.find()

    def find(self) -> None:
        found = locate.newest_verified(self.root)
        assert len(quarantine.set_aside(self.root, found.skipped)) == len(found.skipped)
        if self.promised:
            assert found.manifest is not None
            assert found.manifest.epoch in self.promised
        else:
            assert found.manifest is None

    @invariant()
    def nothing_promised_is_lost(self) -> None:
        assert set(sound(self.root)) == self.promised

    @invariant()
    def order_is_that_of_saving(self) -> None:
        sequences = [m.sequence for m in listing.manifests(self.root)]
        assert sequences == sorted(set(sequences))
        assert self.store.sequence >= max(sequences, default=0)


TestHistory = History.TestCase
TestHistory.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
