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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from checkpointing import codec, store
from checkpointing.errors import CheckpointError, SaveFailed
from checkpointing.events import Deleted, EpochEnd, EvalEnd, Event, Fact, Interrupted, RunEnd, Saved, Verified
from checkpointing.manifest import Manifest
from checkpointing.naming import Template
from checkpointing.policy import MILESTONE, TRAINING, Policy, Save, Stop, kept
from checkpointing.room import failure, out_of_memory, shortage_of, tensor_bytes
from checkpointing.store import Store
from checkpointing.writer import Writer

log = logging.getLogger("peakpoint")

VERSION = "1.0.0"
"""Of the layout of a checkpoint's contents."""

_OVER = (Interrupted, RunEnd)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the manager writes. on_error: `warn` (training goes on) or `stop`; compress: pack zeros away.

    `name` names the files, in place of epoch and step, or of the role and its value.
    """

    background: bool
    on_error: str
    git_commit: str | None
    resumed_from: str | None
    compress: bool = False
    name: Template | None = None


@dataclass(frozen=True)
class _Job:
    """A snapshot, the roles that it is to play, and the policies as they were at that moment.

    The writer's thread asks them what to keep: the living ones may already count on a later save.
    """

    state: dict[str, Any]
    roles: tuple[Manifest, ...]
    policies: dict[str, Policy]
    started: float
    stall_s: float


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
        self._facts: deque[Fact] = deque()
        self._error: CheckpointError | None = None
        self._failed: _Job | None = None
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
            mine = [m for m in store.manifests(self.store.root) if m.run == self.store.run]
            self._bytes = mine[-1].bytes if mine else tensor_bytes(self._gather())
            self._warn_of_space(self._bytes)
        for event in events:
            if isinstance(event, EvalEnd):
                self._evaluated = event
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
        if saves:
            self._save(saves, events)
        elif not over:
            self._current = False
        if self._failed and not saves and isinstance(last, EpochEnd | Interrupted | RunEnd):
            self._submit(self._failed)
        return stop

    def _save(self, saves: list[tuple[str, Save]], events: tuple[Event, ...]) -> None:
        started = time.perf_counter()
        self._writer.wait()
        self._report()
        if self._failed:  # its milestones are lost unless they can be written now
            self._submit(self._failed)
            self._writer.wait()
        roles = self._roles(saves, events)
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
            copied = codec.snapshot(state)
        except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError for want of memory
            self._error, self._current = out_of_memory(error, tensor_bytes(state)), False
            if self._error is None:
                raise
            self._report()
            return
        self._current = True
        self._warn_of_space(self._bytes or 0)
        policies = copy.deepcopy(self.policies)
        self._submit(_Job(copied, roles, policies, started, time.perf_counter() - started))

    def _warn_of_space(self, needed: int) -> None:
        """Say once, until there is room again, that the next saves will not fit."""
        shortage = shortage_of(self.store.root, needed)
        if shortage and not self._short:
            log.warning("%s", shortage)
        self._short = shortage is not None

    def _roles(self, saves: list[tuple[str, Save]], events: tuple[Event, ...]) -> tuple[Manifest, ...]:
        """One manifest for the training tier, whatever the number of tags, and one for each milestone."""
        last = events[-1]
        # The state is unchanged since an evaluation at this very step.
        evaluated = self._evaluated if self._evaluated and self._evaluated.step == last.step else None
        base = Manifest(
            file="",
            tier=TRAINING,
            tags=(),
            policies=(),
            reasons=(),
            sequence=0,
            run=self.store.run,
            epoch=last.epoch,
            global_step=last.step,
            metrics=dict(evaluated.metrics) if evaluated else {},
            sparsity=evaluated.sparsity if evaluated else None,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            git_commit=self._options.git_commit,
        )
        if not any(save.tier == TRAINING for _, save in saves):
            # So that training/latest.pt is the newest state whatever was saved; the next save replaces it.
            saves = [*saves, ("", Save("latest", "the newest state"))]
        by_stem: dict[tuple[str, str], list[tuple[str, Save]]] = {}
        for name, save in saves:
            stem = save.stem or f"checkpoint_epoch_{last.epoch:04d}_step_{last.step:08d}"
            if template := self._options.name:
                stem = template.stem(last.epoch, last.step, base.sparsity, base.metrics)
            by_stem.setdefault((save.tier, stem), []).append((name, save))
        roles = [
            replace(
                base,
                tier=tier,
                file=self.store.free_name(tier, stem),
                tags=tuple(save.tag for _, save in group),
                policies=tuple(name for name, _ in group),
                reasons=tuple(save.reason for _, save in group),
            )
            for (tier, stem), group in by_stem.items()
        ]
        # A training checkpoint goes last, so that it is the newest: `latest` is the one to resume from.
        return tuple(sorted(roles, key=lambda role: role.tier == TRAINING))

    def _submit(self, job: _Job) -> None:
        self._failed = None
        self._writer.submit(lambda: self._write(job))

    def _write(self, job: _Job) -> None:
        """Make a job durable; on the writer's thread. Keeps its error for `_report`."""
        try:
            bad = codec.nonfinite(job.state.get("model_state_dict", {}))
            if bad is not None:
                raise CheckpointError(f"{bad} holds NaN or infinite weights: this state is not saved.")
            compress = self._options.compress
            first = self.store.save(
                job.roles[0],
                lambda file: codec.dump(job.state, file, compress=compress),
                expected=self._bytes,
            )
            written = [first, *(self.store.share(first, role) for role in job.roles[1:])]
            for manifest in written:
                self._point(manifest)
            total = time.perf_counter() - job.started
            tags = tuple(tag for role in written for tag in role.tags)
            self._bytes = first.bytes
            self._facts.append(Saved(written[-1].file, tags, first.bytes, job.stall_s, total))
            self._collect(written, job.policies)
        except SaveFailed as error:
            self._failed, self._error = job, error
        except CheckpointError as error:
            self._error = error
        except OSError as error:
            self._failed, self._error = job, failure(self.store.root, error, self._bytes)

    def _point(self, manifest: Manifest) -> None:
        if manifest.tier == TRAINING:
            self.store.point(TRAINING, "latest", manifest)
        else:
            for tag in manifest.tags:
                self.store.point(MILESTONE, tag, manifest)

    def _collect(self, written: list[Manifest], policies: Mapping[str, Policy]) -> None:
        """Delete what nothing keeps any more, once what was just written is seen to be sound."""
        mine = [m for m in store.manifests(self.store.root) if m.run == self.store.run]
        needed = kept(mine, policies, self._options.resumed_from)
        doomed = [m for m in mine if m not in needed]
        if not doomed:
            return
        # Roles that are copies, not links, are read each.
        for role in {self.store.path(m).stat().st_ino: m for m in written}.values():
            store.verify(self.store.root, role)
        self._facts.append(Verified(written[-1].file))
        for manifest in doomed:
            try:
                self.store.delete(manifest, _farewell(manifest, written))
            except OSError as error:
                log.warning("%s could not be deleted: %s. Training goes on.", manifest.file, error)
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
        if self._options.on_error == "stop":
            error.args = (f"{error} Older checkpoints are intact.",)
            raise error
        log.warning("%s Training goes on; older checkpoints are intact.", error)

    def state_dict(self) -> dict[str, Any]:
        """The policies' counters by name."""
        return {name: policy.state_dict() for name, policy in self.policies.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Give each policy its counters back; returns the names of policies that had none saved."""
        for name, policy in self.policies.items():
            if name in state:
                policy.load_state_dict(state[name])
        self._current = True
        if (file := self._options.resumed_from) is not None:
            self.store.note("resumed", file, "the run goes on from it")
        return [name for name in self.policies if name not in state]

    def drain(self) -> None:
        """Return once every save is on disk and its facts are published."""
        self._writer.wait()
        self._report()

    def close(self) -> None:
        """Finish the save in flight, retry one that failed, and report."""
        self._writer.wait()
        if self._failed:
            self._report()
            self._submit(self._failed)
        self._writer.close()
        self._report()


def _farewell(manifest: Manifest, written: list[Manifest]) -> str:
    """For the journal: who let a checkpoint go, why it had been saved, and what came in its place."""
    who = ", ".join(dict.fromkeys(filter(None, manifest.policies))) or "the manager"
    heir = next((m for m in written if set(m.tags) & set(manifest.tags)), written[-1])
    reasons = "; ".join(manifest.reasons)
    return f"no longer kept by {who} (saved for: {reasons}); replaced by {heir.file}"
