"""unpack: a compressed checkpoint as the ordinary file."""

import pytest
import torch

from peakpoint.base.files import STAGED_PREFIX
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.store import Store
from peakpoint.commands.dispatch import main as cli
from tests.checkpointing.checkpoint_cases import damage, manifest
from tests.states import differences


@pytest.fixture
def packed(tmp_path, whole_run):
    """The newest state of a pruned run, saved compressed, and that state."""
    root = whole_run / "checkpoints"
    state = serialize.load(root / listing.manifests(root)[-1].file)
    target = Store(tmp_path / "checkpoints", "run")
    saved = target.save([manifest("training/a.pt")], lambda f: serialize.dump(state, f, compress=True))[0]
    return target.path(saved), state


def test_the_ordinary_file_holds_the_same_state(packed, tmp_path, cli_main):
    path, state = packed
    out = tmp_path / "plain.pt"
    assert str(out) in cli_main("unpack", path, out).output()
    assert out.stat().st_size > 1.5 * path.stat().st_size
    plain = torch.load(out, weights_only=True)
    assert differences(plain, state) == []
    assert all(isinstance(w, torch.Tensor) for w in plain["model_state_dict"].values())
    assert list(tmp_path.glob(f"{STAGED_PREFIX}*")) == []


def test_it_never_replaces_a_file(packed, tmp_path, cli_main):
    out = tmp_path / "plain.pt"
    out.write_text("mine")
    link = tmp_path / "link.pt"
    link.symlink_to("nowhere")
    for target in (out, link, packed[0]):
        err = cli_main("unpack", packed[0], target).failed().err
        assert err == f"error: {target} exists: choose another name.\n"
    assert out.read_text() == "mine"


def test_what_cannot_be_unpacked_leaves_nothing(packed, tmp_path, cli_main):
    path, _ = packed
    assert cli_main("unpack", path, tmp_path / "nowhere" / "plain.pt")[0] == 1
    assert cli_main("unpack", tmp_path / "nowhere.pt", tmp_path / "plain.pt")[0] == 1
    err = cli_main("unpack", path, path.with_name("plain.pt")).failed().err
    assert "lies among the checkpoints under" in err
    damage(path)
    assert "does not match the digest" in cli_main("unpack", path, tmp_path / "plain.pt").failed().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints"]


def test_a_file_of_others_is_not_copied(tmp_path, cli_main):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "plain.pt")
    err = cli_main("unpack", tmp_path / "plain.pt", tmp_path / "out.pt").failed().err
    assert "is not a checkpoint of Peakpoint. It is weights saved with torch.save" in err
    assert not (tmp_path / "out.pt").exists()


def test_prove_resume_report_and_pull_say_what_a_file_of_others_is(tmp_path, cli_main, capsys):
    path = tmp_path / "plain.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    says = "It is weights saved with torch.save"
    assert says in cli_main("prove-resume", path)[2]
    assert says in cli_main("pull", f"file://{path}", tmp_path / "out")[2]
    assert cli(["report", str(path)]) == 1
    assert says in capsys.readouterr().err
