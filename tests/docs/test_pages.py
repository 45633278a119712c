"""What the pages name is there: the modules that they import, and the files of the repository."""

import re

import pytest

from tests.conftest import ROOT, process

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_file_that_a_page_names_is_there(page):
    names = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|yaml|md))`", page.read_text())
    assert [name for name in names if not (ROOT / name).exists() and name != "conf/local/default.yaml"] == []


@pytest.mark.slow  # Lightning and transformers
def test_each_import_on_a_page_works():
    lines = {
        line.strip()
        for page in PAGES
        for line in re.findall(
            r"^ *(?:from peakpoint\S* import .+|import peakpoint.*)$", page.read_text(), re.M
        )
    }
    assert len(lines) > 10
    code = "from peakpoint.models._torchvision import torchvision\ntorchvision()\n" + "\n".join(sorted(lines))
    done = process("-c", code)
    assert done.returncode == 0, done.stderr
