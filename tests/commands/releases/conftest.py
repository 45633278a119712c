"""promote with the texts of a card."""

import pytest

from tests.commands.releases.promote_cases import TEXTS


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.yaml"
    path.write_text(TEXTS)
    return path


@pytest.fixture
def promote(cli_main, texts):
    """Run promote with the texts of a card: (exit code, stdout, stderr)."""
    return lambda path, version, *more: cli_main(
        "promote", path, "--version", version, "--card", texts, *more
    )
