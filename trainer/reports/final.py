"""The end of a run: which checkpoint was selected, and what it and the final weights do on the test set."""

import logging

from peakpoint.checkpointing.policies.sparsity import peak
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import store
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.checkpointing.storage.store import Store
from peakpoint.trainer.build import Parts
from peakpoint.trainer.config.schema import Config
from peakpoint.trainer.ending import Ending
from peakpoint.trainer.listeners.events import Publisher, Tested
from peakpoint.trainer.state import load_model

log = logging.getLogger("peakpoint")


def select(config: Config, target: Store) -> Manifest | None:
    """The checkpoint that validation chose: the best at the target sparsity, or of all when dense.

    None when no policy kept one.
    """
    monitor = config.checkpoint.monitor
    return peak(target.mine(), metric=monitor.metric, mode=monitor.mode, target=config.pruning.target)


def read_test_set(parts: Parts, target: Store, publish: Publisher, ending: Ending) -> None:
    """Evaluate the final and the selected weights on the test set: the only time that it is looked at.

    A signal cuts it short: a resumed run does it again.
    """
    loop, progress = parts.loop, parts.state.progress

    def test(which: str, epoch: int, step: int, file: str | None) -> None:
        metrics = loop.evaluate(parts.data.test_batches())
        if loop.signal is None:
            publish.tell(Tested(which, epoch, step, metrics, loop.zeros().prunable, file))

    with ending.without("the final weights were not tested"):
        test("final", progress.number, progress.step, None)
    if loop.signal is not None:
        return
    with ending.without("the selected checkpoint was not tested"):
        chosen = select(ending.config, target)
        if chosen is None:
            log.warning("no checkpoint was kept as the best, so the final weights are all there is to test")
            return
        store.verify(target.root, chosen)
        load_model(parts.state.model, serialize.load(target.path(chosen))["model_state_dict"])
        test("selected", chosen.epoch, chosen.global_step, str(target.path(chosen)))
