"""What the pages name is there, the plugins of the guide train, and the tables of cli.md are real."""

import json
import re
from itertools import pairwise

import pytest

from peakpoint.commands.dispatch import main
from tests.conftest import ROOT, TINY, process

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


def write_plugin(name, directory):
    """Write the guide's example of that file name."""
    guide = (ROOT / "docs" / "guide.md").read_text()
    code = re.search(rf"^```python\n# {name}\n(.*?)^```", guide, re.M | re.DOTALL)[1]
    (directory / name).write_text(code)


def test_the_logger_of_the_guide_writes_a_line_for_each_evaluation(tmp_path):
    write_plugin("my_logger.py", tmp_path)
    command = [ROOT / "train.py", *TINY, "plugins=[my_logger]", "logger=[csv]", "logger.csv.metric=loss"]
    trained = process(*command, "hydra.run.dir=run", cwd=tmp_path, PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert trained.returncode == 0, trained.stderr
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [str(record["metrics"]["loss"]) for record in records if record["kind"] == "eval"]
    rows = (tmp_path / "run" / "evaluations.csv").read_text().splitlines()
    assert losses
    assert [row.split(",")[1] for row in rows] == losses


def test_the_plugin_of_the_guide_trains_prunes_and_refuses_what_is_out_of_its_range(tmp_path):
    write_plugin("my_optimizer.py", tmp_path)
    path = f"{ROOT}:{tmp_path}"
    tiny = [option for option in TINY if not option.startswith(("optimizer", "pruning"))]
    command = [ROOT / "train.py", *tiny, "plugins=[my_optimizer]", "optimizer=lion"]
    trained = process(*command, "pruning.target=0.5", cwd=tmp_path, PYTHONPATH=path)
    assert trained.returncode == 0, trained.stderr
    wrong = process(*command, "optimizer.beta=1.5", cwd=tmp_path, PYTHONPATH=path)
    assert wrong.stderr == "error: optimizer.beta=1.5 is out of range: it must be between 0 and 1.\n"
    wrong = process(*command, "pruning=state", cwd=tmp_path, PYTHONPATH=path)
    assert "exp_avg_sq, which optimizer=lion does not have" in wrong.stderr


def heads(output):
    """Return the columns of each table: the words above a rule."""
    lines = output.splitlines()
    return [above.split() for above, below in pairwise(lines) if below and set(below) == {"\u2500"}]


def test_ls_and_select_print_the_columns_that_the_page_shows(train, capsys):
    page = (ROOT / "docs" / "cli.md").read_text()
    command = re.search(r"^```bash\npython train.py (.*?)^```", page, re.M | re.DOTALL)[1]
    assert train(*command.replace("\\\n", "").split()).code == 0
    for name in ("ls", "select"):
        sample = re.search(rf"^\$ peakpoint {name} outputs/run\n(.*?)^```", page, re.M | re.DOTALL)[1]
        assert main([name, "outputs/run"]) == 0
        assert heads(sample) == heads(capsys.readouterr().out)[:1]
