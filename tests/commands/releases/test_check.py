"""check on the command line: one line, an exit code, and a rollback only on request."""

import json
import re

import pytest

from peakpoint.checkpointing.storage import aliases
from tests.checkpoint_fixtures import patterns
from tests.checkpointing.trained_releases import flip_a_byte, released

EARLY, FINAL = 22, 66


@pytest.fixture
def harder(tmp_path):
    return patterns(tmp_path / "new" / "harder.npz", 200, seed=7, noise=0.6)


def test_sound_is_one_line_and_exit_code_0(cli_main, measured_copy):
    accuracy = released(measured_copy, "1.0.0", FINAL).metrics["accuracy"]
    out = cli_main("check", measured_copy, "--roll-back").output()
    assert out == (
        f"sound: champion 1.0.0: accuracy is {accuracy:.2%} on 60 images of val, "
        f"{accuracy:.2%} was recorded: within 0.05\n"
    )


def test_degraded_is_exit_code_1_and_rolls_back_only_when_asked_to(cli_main, measured_copy, harder):
    root = measured_copy / "checkpoints"
    released(measured_copy, "1.0.0", FINAL)
    released(measured_copy, "1.1.0", EARLY)
    out = cli_main("check", measured_copy, "--other-data", harder).failed().out
    assert re.match(r"degraded: champion 1.1.0: accuracy is \d+\.\d\d% ", out)
    assert "on 200 images of harder.npz" in out
    assert out.endswith("worse by more than 0.05\n")
    assert out.count("\n") == 1
    assert aliases.current(root) == {"champion": "1.1.0"}
    assert cli_main("check", measured_copy, "--other-data", harder, "--threshold", "0.5")[0] == 0
    out = cli_main("check", measured_copy, "--other-data", harder, "--roll-back").failed().out
    assert re.search(r"\nrolled back: champion is 1.0.0 again, with accuracy \d+\.\d\d% ", out)
    assert aliases.current(root) == {"champion": "1.0.0"}


def test_not_rolled_back_says_why(cli_main, measured_copy, harder):
    released(measured_copy, "1.0.0", EARLY)
    released(measured_copy, "1.1.0", FINAL)
    out = cli_main("check", measured_copy, "--other-data", harder, "--roll-back").failed().out
    assert re.search(r"not 1.0.0: its accuracy on the same images is \d+\.\d\d%, no better", out)
    assert out.endswith("not rolled back: champion is still 1.1.0\n")


def test_damaged_is_distinguished_from_degraded(cli_main, measured_copy):
    final = released(measured_copy, "1.0.0", FINAL)
    flip_a_byte(measured_copy / "checkpoints" / final.file)
    assert cli_main("check", measured_copy).failed().out.startswith("damaged: champion 1.0.0: ")
    found = json.loads(cli_main("check", measured_copy, "--json", "--roll-back").failed().out)
    assert (found["degraded"], found["measured"], found["rolled_back_to"]) == (True, None, None)
    assert found["notes"] == ["champion named no earlier release"]


def test_json_has_the_numbers(cli_main, measured_copy, harder):
    released(measured_copy, "1.0.0", FINAL)
    released(measured_copy, "1.1.0", EARLY, alias="challenger_1")
    options = ("--alias", "challenger_1", "--other-data", harder, "--json", "--metric", "loss")
    found = json.loads(cli_main("check", measured_copy, *options, "--threshold", "0.01").failed().out)
    assert (found["alias"], found["version"], found["metric"]) == ("challenger_1", "1.1.0", "loss")
    assert found["measured"]["metrics"]["loss"] > found["recorded"] + 0.01
    assert (found["measured"]["samples"], found["threshold"]) == (200, 0.01)
