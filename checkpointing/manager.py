"""Asks every policy, writes once a moment, tags many, applies retention.

Saves that several policies ask for at one moment share their bytes under several names. At most one save is
in flight, so memory holds at most one snapshot beside one that failed. Nothing is deleted before its
successor is durable and verified.
"""

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from peakpoint.base import threads
from peakpoint.base.disk_space import failure, shortage_of, tensor_bytes
from peakpoint.base.errors import CheckpointError, Gone, SaveFailed
from peakpoint.checkpointing import retention
from peakpoint.checkpointing.events import EpochEnd, EvalEnd, Event, Fact, Interrupted, RunEnd, Saved, Skipped
from peakpoint.checkpointing.policy import Policy, Save, Stop, load_counters, roles_of, warn_of_metrics
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.state.serialize import Snapshot, SnapshotBuffers
from peakpoint.checkpointing.storage import journal
from peakpoint.checkpointing.storage.manifest import MILESTONE, TRAINING, Manifest, file_contents
from peakpoint.checkpointing.storage.naming import Template
from peakpoint.checkpointing.storage.store import Store

log = logging.getLogger("peakpoint")

_OVER = (Interrupted, RunEnd)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the manager. on_error: `warn` (training continues) or `stop`; compress: pack zeros away.

    when_busy: during another save `wait` for its end, or `skip` the new one unless it is a milestone or the
    last. `name` names the files, in place of epoch and step, or of the role and its value.
    """

    background: bool
    on_error: str
    git_commit: str | None
    resumed_from: str | None
    compress: bool = False
    when_busy: str = "wait"
    name: Template | None = None


@dataclass(frozen=True)
class Job:
    """A snapshot, its roles, and the policies at that moment, which the writer's thread asks what to keep."""

    snapshot: Snapshot
    roles: tuple[Manifest, ...]
    policies: dict[str, Policy]
    started: float
    stall_s: float

    @property
    def milestones(self) -> tuple[Manifest, ...]:
        """Return the roles that no later save repeats."""
        return tuple(role for role in self.roles if role.tier == MILESTONE)


class Manager:
    """The checkpoints of one run: `handle` for what happens, `close` at the end.

    `policies` are asked in order; their state is saved under their names. `gather` returns the state of the
    training and is called on the training thread.
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
        self._pool = threads.pool("checkpoint-writer") if options.background else threads.AtOnce()
        self._in_flight: Future[None] | None = None
        self._buffers = SnapshotBuffers()
        self._facts: deque[Fact] = deque()
        self._error: CheckpointError | None = None
        self._failed: Job | None = None  # retried; at most one beside the one in flight
        self._best_lost = False  # whether a checkpoint that a policy counts as its best was given up
        self._newest_sequence = 0  # of the checkpoints on disk
        self._evaluated: EvalEnd | None = None
        self._current = False  # whether a checkpoint holds exactly the present state
        # Bytes of the newest save; None before the first step, when free disk space is checked.
        self._bytes: int | None = None
        self._short = False

    def subscribe(self, publish: Callable[[Fact], None]) -> None:
        """Call `publish` on the training thread with each fact, once it is true."""
        self._publish = publish

    def handle(self, *events: Event) -> Stop | None:
        """Handle the events of one moment: at most one checkpoint is written.

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
                warn_of_metrics(event, {} if self._evaluated else self.policies)
                self._evaluated = event
            if self._best_lost and isinstance(event, (EvalEnd, *_OVER)):  # it waits for the writer
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
        writing = self._in_flight is not None and not self._in_flight.done()
        busy = writing and self._options.when_busy == "skip"
        # A rolling checkpoint may be skipped, since a later one replaces it; a milestone may not.
        if busy and saves and not over and all(save.tier == TRAINING for _, save in saves):
            self._current = False
            self._publish(Skipped(last.epoch, last.step, tuple(save.tag for _, save in saves)))
        elif saves:
            self._save(saves, events)
        elif not over:
            self._current = False
        if self._failed and not saves and isinstance(last, EpochEnd | Interrupted | RunEnd):
            self._wait()
            if self._failed:
                self._in_flight = self._pool.submit(self._write, self._failed)
        return stop

    def _save(self, saves: list[tuple[str, Save]], events: tuple[Event, ...]) -> None:
        started = time.perf_counter()
        self._wait()
        if self._facts or self._error:
            self._report()
        if self._failed:  # before the new snapshot, so that one copy of the state is enough
            self._write(self._failed)
        last, seen = events[-1], self._evaluated
        # Metrics describe the state only if no step was taken since the evaluation.
        evaluated = seen if seen and seen.step == last.step else None
        roles = roles_of(saves, last, evaluated, self.store, self._options.git_commit, self._options.name)
        counters = {name: policy.state_dict() for name, policy in self.policies.items()}
        # The last role is always one of the training tier, and so is the state.
        state = file_contents(roles[-1], timestamp=roles[-1].created, policies=counters, **self._gather())
        try:
            snapshot = self._buffers.snapshot(state)
        except SaveFailed as error:
            self._error, self._best_lost, self._current = error, True, False
            retention.warn_lost(roles)
            self._report()
            return
        self._current = True
        policies = copy.deepcopy(self.policies)
        job = Job(snapshot, roles, policies, started, time.perf_counter() - started)
        self._in_flight = self._pool.submit(self._write, job)

    def _wait(self) -> None:
        """Return once nothing is in flight."""
        if self._in_flight is not None:
            in_flight, self._in_flight = self._in_flight, None
            in_flight.result()

    def _warn_of_space(self, needed: int) -> None:
        """Warn once, until there is space again, that the next saves will not fit."""
        shortage = shortage_of(self.store.root, needed)
        if shortage and not self._short:
            log.warning("%s", shortage)
        self._short = shortage is not None

    def _write(self, job: Job) -> None:
        """Make a job durable on the writer's thread; its error is kept for `_report`."""
        late = self._newest_sequence > job.roles[-1].sequence
        roles = job.milestones if late else job.roles
        try:
            state = job.snapshot.state
            bad = serialize.nonfinite(state.get("model_state_dict", {}))
            if bad is not None:
                raise serialize.not_finite(bad)
            compress = self._options.compress
            written = self.store.save(
                roles, lambda file: serialize.dump(state, file, compress=compress), expected=self._bytes
            )
            self._newest_sequence = max(self._newest_sequence, written[-1].sequence)
            if self._failed is job or (self._failed and not self._failed.milestones):
                self._failed = None
            total = time.perf_counter() - job.started
            tags = tuple(tag for role in written for tag in role.tags)
            self._bytes = written[0].bytes
            stall = max(job.stall_s, job.snapshot.stall_s)
            self._facts.append(Saved(written[-1].file, tags, self._bytes, stall, total))
            there = self.store.mine()  # listed once a save: a folder may hold thousands
            retention.set_pointers(self.store, written, there)
            if not late:  # the policies of a late job do not know the newer checkpoints
                needed = retention.kept(there, job.policies, self._options.resumed_from)
                self._facts.extend(retention.delete_unneeded(self.store, written, there, needed))
            self._warn_of_space(self._bytes)
        except SaveFailed as error:
            self._keep_for_retry(job, error)
        except CheckpointError as error:
            self._error, self._best_lost = error, True
        except OSError as error:
            self._keep_for_retry(job, failure(self.store.root, error, self._bytes))
        finally:
            if self._failed is not job:
                job.snapshot.release()

    def _keep_for_retry(self, job: Job, error: CheckpointError) -> None:
        """Keep the newest of the snapshots that failed, but no rolling one in place of a milestone."""
        self._error = error
        waiting = self._failed
        if waiting and waiting is not job:
            if waiting.milestones and not job.milestones:
                self._current = False  # the snapshot of the present state is given up
                return
            retention.warn_lost(waiting.roles)
            self._best_lost = True
        self._failed = job

    def _reconcile(self) -> None:
        """Make the policies count on checkpoints on disk alone, so that the next best is saved."""
        self._wait()
        if self._failed:  # it may still be written
            return
        self._best_lost = False
        mine = self.store.mine()
        for policy in self.policies.values():
            if mine:  # a fork begins with peaks that its origin holds
                for lost in policy.reconcile(mine):
                    log.warning("%s.", lost)

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
        log.warning("%s Training continues; older checkpoints are intact.", error)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the counters of each policy; log those without counters, and counters without a policy."""
        load_counters(self.policies, state)
        for name in sorted(self.policies.keys() - state.keys()):
            log.info("checkpoint policy %s is new: it starts from nothing", name)
        for name in sorted(name for name in state.keys() - self.policies.keys() if state[name]):
            log.warning(
                "checkpoint policy %s is no longer configured: its counters are dropped, its files stay",
                name,
            )
        self._current = True
        self._reconcile()
        if (file := self._options.resumed_from) is not None:
            journal.append(self.store.root, "resumed", file, "the run continues from it")

    def drain(self) -> None:
        """Return once every save is on disk and its facts are published."""
        self._wait()
        self._report()

    def close(self) -> None:
        """Finish the save in flight, retry one that failed, and report."""
        self._wait()
        if self._failed:
            self._report()
            self._write(self._failed)
        self._pool.shutdown()
        if self._failed:
            retention.warn_lost(self._failed.roles)
        self._report()
