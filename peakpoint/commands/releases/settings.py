"""conf/release, typed: the settings of a release and the texts of its model card."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base import bounded
from peakpoint.base.errors import CheckpointError, PeakpointError
from peakpoint.base.files import CONF
from peakpoint.base.given import require_range
from peakpoint.base.text import nearest
from peakpoint.deployment.inference.form import SPLITS, Form
from peakpoint.deployment.release import card
from peakpoint.trainer.config.explain import explain
from peakpoint.trainer.config.hydra_overrides import quote
from peakpoint.trainer.config.schema import require

RELEASE = CONF / "release"
CARD = "card.yaml"


@dataclass(kw_only=True)
class Settings:
    """The settings of a release; see conf/release/default.yaml."""

    format: str
    dtype: str
    compress: bool
    golden: int
    split: str
    tolerance: float
    sign: str | None
    card: card.Texts

    def form(self) -> Form:
        """Return the form of the weights. Raises CheckpointError for values that it does not have."""
        return Form(format=self.format, dtype=self.dtype, compress=self.compress)

    def texts(self, file: Path | None, earlier: Mapping[str, Any]) -> dict[str, Any]:
        """Return the texts of the card, given in `file` or by --set, else in an `earlier` card.

        Raises CheckpointError for one that is required and nowhere given.
        """
        own = asdict(self.card)
        given = {name: value for name, value in own.items() if card.lines_of(value)}
        texts = {name: earlier[name] for name in own if earlier.get(name)} | given
        where = file or "a file of your own (--card FILE), in conf/release/card.yaml"
        card.check(texts, f"them in {where} or with --set card.NAME=TEXT")
        return texts

    def __post_init__(self) -> None:
        require(self.split in SPLITS, f"split={self.split} is not a choice{nearest(self.split, SPLITS)}")
        require_range(self, "", 1, 1024, "golden")
        require_range(self, "", 0, 1, "tolerance")
        self.form()


def load(changes: Sequence[str], file: Path | None) -> Settings:
    """Return conf/release as Hydra composes it: a file of card texts over it, then each change, `key=value`.

    Raises CheckpointError: one line that names the key, and the nearest right one.
    """
    texts = bounded.literal(bounded.read_strict_yaml(file)) if file else {}
    if file:
        _composed(texts, [], f"{file}: ")
    return _composed(texts, [_override(change) for change in changes], "--set ")


def _override(change: str) -> str:
    """Return a change as Hydra takes it; texts of the card and the path of a key are taken literally."""
    key, equals, value = change.partition("=")
    if not equals or not key.replace(".", "").isidentifier() or key.startswith("hydra"):
        raise CheckpointError(f"--set {change}: give it as key=value, such as --set dtype=float16.")
    is_text = key == "sign" or key.startswith("card.")
    if is_text and value != "null" and not value.startswith("["):
        change = f"{key}={quote(bounded.literal(value))}"
    try:
        OverridesParser.create().parse_override(change)
    except HydraException:
        raise CheckpointError(
            f"--set {change} cannot be read: put quotes around a text with brackets, commas or colons."
        ) from None
    return change


def _composed(texts: dict[Any, Any], overrides: list[str], where: str) -> Settings:
    """Return conf/release with texts of a card and overrides. Raises CheckpointError."""
    store = ConfigStore.instance()
    try:
        store.store(group="release", name="settings", node=Settings)
        store.store(group="release", name="texts", node={"card": texts})
        with initialize_config_dir(str(RELEASE), version_base="1.3"):
            settings: Any = OmegaConf.to_object(compose("default", overrides))
    except (HydraException, OmegaConfBaseException, PeakpointError, ValueError) as error:
        raise CheckpointError(f"{where}{explain(error)}") from None
    assert isinstance(settings, Settings)
    return settings
