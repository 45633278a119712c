"""export: its output and its JSON, of a real run."""

import json
import re

import onnxruntime
import pytest

from peakpoint.checkpointing.storage import listing
from peakpoint.deployment.inference import network
from tests.checkpointing.checkpoint_cases import damage


def test_a_run_as_onnx_is_reported_in_three_lines(finished, tmp_path, cli_main):
    out = tmp_path / "a.onnx"
    first, second, third = cli_main("export", finished, out).output().splitlines()
    assert first.startswith(f"{out}: ONNX, opset ")
    assert first.endswith(network.best(finished / "checkpoints").file)
    assert second == "takes any x 3 x 12 x 12 float32 as `images`, normalised"
    assert third.startswith("compared with the outputs of the network: largest error ")
    assert third.endswith("the same class for 8 of 8 images")
    assert onnxruntime.InferenceSession(str(out)).get_inputs()[0].shape[1:] == [3, 12, 12]


def test_json_says_what_was_made_of_what(finished, tmp_path, cli_main):
    root = finished / "checkpoints"
    out, latest = tmp_path / "a.pt2", root / "training" / "latest.pt"
    message = cli_main("export", latest, out, "--format", "torch", "--batch", "2", "--json").output()
    found = json.loads(message)
    newest = [m for m in listing.manifests(root) if m.tier == "training"][-1]
    assert (found["source"], found["digest"]) == (newest.file, newest.digest)
    assert (found["file"], found["bytes"]) == (str(out), out.stat().st_size)
    assert (found["format"], found["opset"], found["batch"]) == ("torch", None, 2)
    assert found["config"] == network.describe(latest).config()
    assert found["compared_with"] == "network"
    assert found["agreement"]["sound"] is True


def test_a_damaged_checkpoint_is_not_exported(trained, tmp_path, cli_main):
    file = network.best(trained / "checkpoints").file
    damage(trained / "checkpoints" / file)
    err = cli_main("export", trained / "checkpoints" / file, tmp_path / "a.onnx").failed().err
    assert "does not match the digest" in err
    assert not (tmp_path / "a.onnx").exists()


def test_no_file_is_made_among_checkpoints(finished, cli_main):
    err = cli_main("export", finished, finished / "checkpoints" / "milestone" / "a.onnx").failed().err
    assert "lies among the checkpoints under" in err


@pytest.mark.parametrize("batch", ["many", "1.5", "", "0", "-1"])
def test_a_batch_is_dynamic_or_a_number(batch, tmp_path, capsys, cli_main):
    with pytest.raises(SystemExit) as ended:
        cli_main("export", "a", "b.onnx", f"--batch={batch}")
    assert ended.value.code == 2
    assert re.search("(is not a whole number|is out of range).*, or dynamic", capsys.readouterr().err)
