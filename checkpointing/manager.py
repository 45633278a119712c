"""Asks every policy, writes once a moment, tags many, applies retention.

One moment, one snapshot, one write: what several policies want at the same moment shares its bytes under
several names. Nothing is deleted before its successor is durable and verified, and a failed save or deletion
never loses what is already there.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from checkpointing import codec, store
from checkpointing.errors import CheckpointError
from checkpointing.events import Deleted, EpochEnd, EvalEnd, Event, Fact, Interrupted, RunEnd, Saved, Verified
from checkpointing.manifest import Manifest
from checkpointing.policy import MILESTONE, TRAINING, Policy, Save, Stop
from checkpointing.store import Store
from checkpointing.writer import Writer

log = logging.getLogger("peakpoint")

VERSION = "1.0.0"
"""Of the layout of a checkpoint's contents."""

_OVER = (Interrupted, RunEnd)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the manager writes. on_error: `warn` (training goes on) or `stop`; compress: pack zeros away."""

    background: bool
    on_error: str
    git_commit: str | None
    resumed_from: str | None
    compress: bool = False


@dataclass(frozen=True)
class _Job:
    """A snapshot, and the roles that it is to play."""

    state: dict[str, Any]
    roles: tuple[Manifest, ...]
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
        self._error: Exception | None = None
        self._failed: _Job | None = None
        self._evaluated: EvalEnd | None = None
        # Whether a checkpoint holds exactly the present state.
        self._current = False

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
        copied = codec.snapshot(state)
        self._current = True
        self._submit(_Job(copied, roles, started, time.perf_counter() - started))

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
            first = self.store.save(job.roles[0], lambda file: codec.dump(job.state, file, compress=compress))
            written = [first, *(self.store.share(first, role) for role in job.roles[1:])]
            for manifest in written:
                self._point(manifest)
            total = time.perf_counter() - job.started
            tags = tuple(tag for role in written for tag in role.tags)
            self._facts.append(Saved(written[-1].file, tags, first.bytes, job.stall_s, total))
            self._collect(written)
        except CheckpointError as error:
            self._error = error
        except OSError as error:
            self._failed, self._error = job, error

    def _point(self, manifest: Manifest) -> None:
        if manifest.tier == TRAINING:
            self.store.point(TRAINING, "latest", manifest)
        else:
            for tag in manifest.tags:
                self.store.point(MILESTONE, tag, manifest)

    def _collect(self, written: list[Manifest]) -> None:
        """Delete what nothing keeps any more, once what was just written is seen to be sound."""
        mine = [m for m in store.manifests(self.store.root) if m.run == self.store.run]
        kept = self.why(mine)
        doomed = [m for m in mine if m not in kept]
        if not doomed:
            return
        store.verify(self.store.root, written[-1])
        self._facts.append(Verified(written[-1].file))
        for manifest in doomed:
            try:
                self.store.delete(manifest)
            except OSError as error:
                log.warning("%s could not be deleted: %s. Training goes on.", manifest.file, error)
            else:
                self._facts.append(Deleted(manifest.file))

    def why(self, mine: list[Manifest]) -> dict[Manifest, str]:
        """Which checkpoints are kept, each with the reason; of a run's manifests, oldest first."""
        kept: dict[Manifest, str] = {}
        for manifest in mine:
            if manifest.file == self._options.resumed_from:
                kept[manifest] = "this run was resumed from it"
            elif unknown := [p for p in manifest.policies if p and p not in self.policies]:
                kept[manifest] = f"its policy {unknown[0]} is no longer configured"
        if mine:
            kept[mine[-1]] = "the newest"
        for policy in self.policies.values():
            kept.update(policy.keeps(mine))
        return kept

    def _report(self) -> None:
        """Publish the facts so far, and warn of a save that failed, or raise it with on_error=stop."""
        while self._facts:
            self._publish(self._facts.popleft())
        error = self._error
        if error is None:
            return
        self._error = None  # only now: the writer's thread may set it at any time
        if isinstance(error, CheckpointError):
            sentence = str(error)
        else:
            reason = getattr(error, "strerror", None) or error
            sentence = f"A checkpoint could not be written to {self.store.root}: {reason}."
        if self._options.on_error == "stop":
            raise CheckpointError(f"{sentence} Older checkpoints are intact.")
        log.warning("%s Training goes on; older checkpoints are intact.", sentence)

    def state_dict(self) -> dict[str, Any]:
        """The policies' counters by name."""
        return {name: policy.state_dict() for name, policy in self.policies.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Give each policy its counters back; returns the names of policies that had none saved."""
        for name, policy in self.policies.items():
            if name in state:
                policy.load_state_dict(state[name])
        self._current = True
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
