"""A run's checkpoints and its mirrors, for the tests of uploads."""

import pytest

from peakpoint.checkpointing.remote.background import Mirror
from peakpoint.checkpointing.remote.client import Remote, RemoteError
from peakpoint.checkpointing.remote.layout import read_index
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import saved


class World:
    """A run's checkpoints, and mirrors of them in one place."""

    def __init__(self, folder, url, run="run", **settings):
        self.root = folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        self.store = Store(self.root, run)
        self.url, self.run = url, run
        self.settings = {"what": {"milestone"}, "keep": 1, "queue": 16, "wait_s": 100.0} | settings
        self.numbers = iter(range(1, 1000))

    def save(self, name=None, tag="best", **facts):
        """A milestone that is like no other."""
        number = next(self.numbers)
        facts = {"tags": (tag,), "epoch": number} | facts
        return saved(self.store, f"milestone/{name or f'{tag}_{number}'}.pt", float(number), **facts)

    def remote(self, timeout_s=10):
        return Remote(self.url, timeout_s=timeout_s)

    def mirror(self, *, timeout_s=10, **settings):
        return Mirror(self.store, self.remote(timeout_s), **(self.settings | settings))

    def copy(self, **settings):
        """Start a mirror, and wait until it has done everything."""
        made = self.mirror(**settings)
        made.start()
        made.close()
        assert made._done.is_set()
        return made

    def fail(self, **settings):
        """What a mirror does at one go, which fails: its thread would try again."""
        made = self.mirror(**settings)
        with pytest.raises(RemoteError):
            made._pass()
        return made

    def there(self, *, damaged=False):
        """The files that count as copied; others are not there, or may be `damaged`."""
        found, bad = read_index(
            self.remote().below(self.run), self.remote().below(self.run).find("checkpoints")
        )
        assert damaged or not bad
        return list(found)
