"""compare: its tables and its JSON, of real runs."""

import json
import re

import pytest

from peakpoint.base.disk_space import in_words
from peakpoint.deployment.inference import network


@pytest.fixture
def pair(finished):
    """Return a run, for what it chose, and its newest state."""
    return finished, finished / "checkpoints" / "training" / "latest.pt"


def test_the_tables_of_two_networks(pair, cli_main):
    message = cli_main("compare", *pair, "--rounds", "3", "--batch", "4", "--threads", "1").output()
    lines = [line.rstrip() for line in message.splitlines()]
    assert lines[0].startswith(f"A  {pair[0]}: best_accuracy_")
    assert lines[1].startswith(f"B  {pair[1]}: checkpoint_epoch_")
    cells = [line.split() for line in lines if line[:2] in ("A ", "B ")][2:]
    sizes, accuracies, times = cells[:2], cells[2:4], cells[4:]
    manifest = network.best(pair[0] / "checkpoints")
    assert " ".join(sizes[0][1:3]) == in_words((pair[0] / "checkpoints" / manifest.file).stat().st_size)
    assert sizes[0][-1] == f"{manifest.sparsity:.4f}"
    assert accuracies[0][2] == f"{manifest.metrics['accuracy']:.4f}"
    assert accuracies[0][-2:] == ["-", "-"]
    assert accuracies[1][6][0] in "+-"
    assert times[0][3] == "1.00"
    assert len(times) == 2
    assert "accuracy on 14 val images, float32; 95 % intervals: Wilson, and Newcombe's for pairs" in message
    assert "median (quartiles) of 3 rounds in random order, CPU, threads: 1" in message
    assert "zeros are multiplied like any number here" in message


@pytest.mark.parametrize("columns", [80, 100])
def test_a_narrow_terminal_shows_the_same_numbers(columns, pair, cli_main, on_a_terminal):
    def numbers(message):  # of the tables of sizes and of accuracy; times differ
        return re.findall(r"[\d.,]+", message.partition("\nsize\n")[2].partition("\ntime\n")[0])

    assert numbers(on_a_terminal(columns, "compare", *pair, "--rounds", "2")) == numbers(
        cli_main("compare", *pair, "--rounds", "2")[1]
    )


def test_without_data_there_is_no_accuracy(pair, cli_main):
    message = cli_main("compare", *pair, "--split", "none", "--rounds", "2").succeeded().out
    assert "accuracy" not in message.replace("best_accuracy", "")


def test_json_has_every_figure(pair, cli_main):
    message = cli_main("compare", *pair, *pair, "--rounds", "3", "--split", "test", "--json").output()
    found = json.loads(message)
    assert (found["split"], found["rounds"], found["device"]) == ("test", 3, "cpu")
    assert len(found["networks"]) == 4
    first, second, third, _ = found["networks"]
    assert first["against_first"] is None
    assert first["accuracy"]["count"] == 40
    assert first["accuracy"]["value"] == first["accuracy"]["right"] / 40
    assert third["against_first"]["p"] == 1
    assert sum(second["against_first"][key] for key in ("both", "first", "second", "neither")) == 40
    assert set(first["latency"]) == {"1", "32"}
    assert first["latency"]["1"]["ratio"] == {"low": 1, "median": 1, "high": 1}
    assert first["packed_bytes"] < first["weights_bytes"] < first["file_bytes"]


def test_a_device_that_is_not_there_is_one_line(finished, cli_main):
    code, message, err = cli_main("compare", finished, finished, "--device", "abacus")
    assert (code, message) == (1, "")
    assert err == "error: There is no device 'abacus' here: use cpu, or cuda where torch finds it.\n"
