"""Asks every policy, writes once a moment, tags many, applies retention.

One moment, one snapshot, one write: what several policies want at the same moment shares its bytes under
several names. Nothing is deleted before its successor is durable and verified, and a failed save or deletion
never loses what is already there.
"""

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peakpoint.base.disk_space import failure, out_of_memory, shortage_of, tensor_bytes
from peakpoint.base.errors import CheckpointError, Gone, SaveFailed, os_reason
from peakpoint.checkpointing.events import (
    Deleted,
    EpochEnd,
    EvalEnd,
    Event,
    Fact,
    Interrupted,
    RunEnd,
    Saved,
    Skipped,
    Verified,
)
from peakpoint.checkpointing.policy import (
    MILESTONE,
    TRAINING,
    Policy,
    Save,
    Stop,
    kept,
    load_counters,
)
from peakpoint.checkpointing.roles import farewell, roles_of, warn_lost, warn_unmeasured, warn_unranked
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.state.snapshot import Host
from peakpoint.checkpointing.storage import store
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.checkpointing.storage.naming import Template
from peakpoint.checkpointing.storage.store import Store
from peakpoint.checkpointing.writer import Job, Writer

log = logging.getLogger("peakpoint")

VERSION = "1.0.0"
"""Of the layout of a checkpoint's contents."""

_OVER = (Interrupted, RunEnd)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the manager writes. on_error: `warn` (training goes on) or `stop`; compress: pack zeros away.

    when_busy: a save that comes while another is being written has training `wait` for that one, or with
    `skip` is left out, unless it is a milestone or the last.
    `name` names the files, in place of epoch and step, or of the role and its value.
    """

    background: bool
    on_error: str
    git_commit: str | None
    resumed_from: str | None
    compress: bool = False
    when_busy: str = "wait"
    name: Template | None = None


class Manager:
    """The checkpoints of one run: `handle` for what happens, `close` at the end.

    `policies` are asked in order; their state is saved under their names. `gather` collects the living state,
    on the training thread.
    """

    def __init__(
        self,
        store: Store,
        policies: Mapping[str, Policy],
        gather: Callable[[], dict[str, Any]],
        *,
        options: Options,
    ) -> None:
        self.store = store
        self.policies = dict(policies)
        self._gather = gather
        self._options = options
        self._publish: Callable[[Fact], None] = lambda _: None
        self._writer = Writer(background=options.background)
        self._host = Host()
        self._facts: deque[Fact] = deque()
        self._error: CheckpointError | None = None
        # What waits for a disk that takes it again: one snapshot beside the one in flight, and no more.
        self._failed: Job | None = None
        # Whether something that a policy counts as its best is not to be written any more.
        self._lost = False
        # The place in the order of saving of the newest that is on disk.
        self._newest = 0
        self._evaluated: EvalEnd | None = None
        # Whether a checkpoint holds exactly the present state.
        self._current = False
        # What the newest save took; None until training has begun with a look at the room for one.
        self._bytes: int | None = None
        self._short = False

    def subscribe(self, publish: Callable[[Fact], None]) -> None:
        """Have `publish` called on the training thread with each fact, once it is true."""
        self._publish = publish

    def handle(self, *events: Event) -> Stop | None:
        """React to what happened at one moment: at most one checkpoint is written.

        Returns a Stop when a policy asks for one. Raises CheckpointError for a state that cannot be saved,
        and, with on_error=stop, for a save that failed.
        """
        if self._facts or self._error:
            self._report()
        if self._bytes is None:  # after the first step, when the optimizer has its state
            mine = self.store.mine()
            self._bytes = mine[-1].bytes if mine else tensor_bytes(self._gather())
            self._warn_of_space(self._bytes)
        for event in events:
            if isinstance(event, EvalEnd):
                if self._evaluated is None:
                    warn_unmeasured(self.policies, event)
                self._evaluated = event
                warn_unranked(event)
            if self._lost and isinstance(event, (EvalEnd, *_OVER)):  # not each step: it waits
                self._reconcile()
        stop: Stop | None = None
        saves: list[tuple[str, Save]] = []
        for name, policy in self.policies.items():
            for event in events:
                for decision in policy.decide(event):
                    if isinstance(decision, Stop):
                        stop = stop or decision
                    else:
                        saves.append((name, decision))
        last = events[-1]
        over = isinstance(last, _OVER)
        if over and not self._current:
            reason = "interrupted" if isinstance(last, Interrupted) else "the end of the run"
            saves.append(("", Save("last", reason)))
        busy = self._options.when_busy == "skip" and not over and self._writer.busy
        if busy and saves and all(save.tier == TRAINING for _, save in saves):  # later ones make up for them
            self._current = False
            self._publish(Skipped(last.epoch, last.step, tuple(save.tag for _, save in saves)))
        elif saves:
            self._save(saves, events)
        elif not over:
            self._current = False
        if self._failed and not saves and isinstance(last, EpochEnd | Interrupted | RunEnd):
            self._writer.submit(self._retry)
        return stop

    def _save(self, saves: list[tuple[str, Save]], events: tuple[Event, ...]) -> None:
        started = time.perf_counter()
        self._writer.wait()
        if self._facts or self._error:
            self._report()
        if self._failed:  # before the new one, so that one copy of the state is enough
            self._retry()
        last, seen = events[-1], self._evaluated
        # The state is unchanged since an evaluation at this very step.
        evaluated = seen if seen and seen.step == last.step else None
        roles = roles_of(saves, last, evaluated, self.store, self._options.git_commit, self._options.name)
        state = {
            "version": VERSION,
            "checkpoint_type": roles[0].tier,
            "timestamp": roles[0].created,
            "git_commit": self._options.git_commit,
            "metrics": dict(roles[0].metrics),
            "policies": {name: policy.state_dict() for name, policy in self.policies.items()},
            **self._gather(),
        }
        try:
            snapshot = self._host.snapshot(state)
        except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError for want of memory
            self._error, self._current = out_of_memory(error, tensor_bytes(state)), False
            if self._error is None:
                raise
            warn_lost(roles)
            self._lost = True
            self._report()
            return
        self._current = True
        policies = copy.deepcopy(self.policies)
        job = Job(snapshot, roles, policies, started, time.perf_counter() - started)
        self._writer.submit(lambda: self._write(job))

    def _warn_of_space(self, needed: int) -> None:
        """Say once, until there is room again, that the next saves will not fit."""
        shortage = shortage_of(self.store.root, needed)
        if shortage and not self._short:
            log.warning("%s", shortage)
        self._short = shortage is not None

    def _retry(self) -> None:
        if self._failed:
            self._write(self._failed)

    def _write(self, job: Job) -> None:
        """Make a job durable; on the writer's thread. Keeps its error for `_report`."""
        late = self._newest > job.roles[-1].sequence
        roles = job.milestones if late else job.roles
        try:
            stall = max(job.stall_s, job.snapshot.wait())
            state = job.snapshot.state
            bad = serialize.nonfinite(state.get("model_state_dict", {}))
            if bad is not None:
                raise CheckpointError(f"{bad} holds NaN or infinite values: this state is not saved.")
            compress = self._options.compress
            written = self.store.save(
                roles, lambda file: serialize.dump(state, file, compress=compress), expected=self._bytes
            )
            self._newest = max(self._newest, written[-1].sequence)
            if self._failed is job or (self._failed and not self._failed.milestones):
                self._failed = None
            total = time.perf_counter() - job.started
            tags = tuple(tag for role in written for tag in role.tags)
            self._bytes = written[0].bytes
            self._facts.append(Saved(written[-1].file, tags, self._bytes, stall, total))
            there = self.store.mine()  # listed once a save: a folder may hold thousands
            self._point(written, there)
            if not late:  # its policies know nothing of what came after it: the next save lets go
                self._collect(written, there, job.policies)
            self._warn_of_space(self._bytes)
        except SaveFailed as error:
            self._refused(job, error)
        except CheckpointError as error:
            self._error, self._lost = error, True
        except OSError as error:
            self._refused(job, failure(self.store.root, error, self._bytes))
        finally:
            if self._failed is not job:
                job.snapshot.release()

    def _refused(self, job: Job, error: CheckpointError) -> None:
        """Keep one of the snapshots that failed: the newest, but no rolling one in place of a milestone."""
        self._error = error
        waiting = self._failed
        if waiting and waiting is not job:
            if waiting.milestones and not job.milestones:
                self._current = False  # what holds the present state was let go
                return
            warn_lost(waiting.roles)
            self._lost = True
        self._failed = job

    def _reconcile(self) -> None:
        """Have the policies count on what is on disk alone, so that the best of the rest is saved."""
        self._writer.wait()
        if self._failed:  # it may still be written
            return
        self._lost = False
        mine = self.store.mine()
        for policy in self.policies.values():
            if mine:  # a fork begins with peaks that its origin holds
                for lost in policy.reconcile(mine):
                    log.warning("Lost: %s.", lost)

    def _point(self, written: list[Manifest], there: list[Manifest]) -> None:
        """Let the pointers name the newest of their roles."""
        newer = [m for m in there if m.sequence > written[-1].sequence]
        taken = {tag for manifest in newer for tag in manifest.tags}
        for manifest in written:
            if manifest.tier == TRAINING:
                self.store.point(TRAINING, "latest", manifest)
            else:
                for tag in set(manifest.tags) - taken:
                    self.store.point(MILESTONE, tag, manifest)

    def _collect(
        self, written: list[Manifest], there: list[Manifest], policies: Mapping[str, Policy]
    ) -> None:
        """Delete what nothing keeps any more, once what was just written is seen to be sound."""
        needed = kept(there, policies, self._options.resumed_from)
        doomed = [m for m in there if m not in needed]
        if not doomed:
            return
        # Roles that are copies, not links, are read each.
        for role in {self.store.path(m).stat().st_ino: m for m in written}.values():
            store.verify(self.store.root, role, threads=1)
        self._facts.append(Verified(written[-1].file))
        for manifest in doomed:
            try:
                self.store.delete(manifest, farewell(manifest, written))
            except OSError as error:
                log.warning("%s could not be deleted: %s. Training goes on.", manifest.file, os_reason(error))
            else:
                self._facts.append(Deleted(manifest.file))

    def _report(self) -> None:
        """Publish the facts so far, and warn of a save that failed, or raise it with on_error=stop."""
        while self._facts:
            self._publish(self._facts.popleft())
        error = self._error
        if error is None:
            return
        self._error = None  # only now: the writer's thread may set it at any time
        if isinstance(error, Gone):
            raise error
        if self._options.on_error == "stop":
            error.args = (f"{error} Older checkpoints are intact.",)
            raise error
        log.warning("%s Training goes on; older checkpoints are intact.", error)

    def state_dict(self) -> dict[str, Any]:
        """The policies' counters by name."""
        return {name: policy.state_dict() for name, policy in self.policies.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each policy its counters back; says which have none, and which counters nobody takes."""
        load_counters(self.policies, state)
        for name in sorted(self.policies.keys() - state.keys()):
            log.info("checkpoint policy %s is new: it starts from nothing", name)
        for name in sorted(state.keys() - self.policies.keys()):
            log.warning(
                "checkpoint policy %s is asked for no longer: its counters are dropped, what it saved stays",
                name,
            )
        self._current = True
        self._reconcile()
        if (file := self._options.resumed_from) is not None:
            self.store.note("resumed", file, "the run goes on from it")

    def drain(self) -> None:
        """Return once every save is on disk and its facts are published."""
        self._writer.wait()
        self._report()

    def close(self) -> None:
        """Finish the save in flight, retry one that failed, and report."""
        self._writer.wait()
        if self._failed:
            self._report()
            self._retry()
        self._writer.close()
        if self._failed:
            warn_lost(self._failed.roles)
        self._report()
