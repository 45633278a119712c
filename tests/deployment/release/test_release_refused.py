"""What a release must not be: a smaller step than its change, or made of what cannot serve."""

from dataclasses import replace

import pytest
import torch

from peakpoint import CheckpointError
from peakpoint.checkpointing.storage import locate
from peakpoint.deployment.release import release
from tests.checkpointing.publish_cases import DESCRIPTION, PLAIN, SAFE, contents, small, sound

FIRST = "conv1.weight"


class TestBump:
    def test_the_same_network_may_have_any_version(self, tmp_path):
        for version in ("1.1.0", "1.0.0", "1.0.1", "1.2.0-rc.1", "3.0.0", "0.1.0"):
            release.write(tmp_path, small(version, seed=len(version)))
        assert sound(tmp_path) == ["0.1.0", "1.0.0", "1.0.1", "1.1.0", "1.2.0-rc.1", "3.0.0"]

    @pytest.mark.parametrize(
        ("facts", "message"),
        [
            ({"options": {"dropout": 0.5}}, r"the model's option dropout is 0\.5 and was 0\.0"),
            ({"mean": (0.4, 0.5, 0.5)}, r"the input's mean is \[0\.4, 0\.5, 0\.5\] and was \[0\.5,"),
            ({"classes": ("a", "b", "d", "c")}, "the list of classes is"),
            ({"classes": ("a", "b", "c")}, "the list of classes has 3 entries and had 4, and 2 more"),
            ({"image_shape": (3, 16, 16)}, r"the input's shape is \[3, 16, 16\] and was \[3, 12, 12\]"),
        ],
    )
    def test_a_changed_network_or_input_needs_a_major(self, tmp_path, facts, message):
        other = replace(DESCRIPTION, **facts)
        release.write(tmp_path, small("1.1.0"))
        release.write(tmp_path, small("2.3.0"))
        before = contents(tmp_path)
        refused = rf"1\.2\.0 would not fit 1\.1\.0: {message}.* a new major version: 3\.0\.0\.$"
        with pytest.raises(CheckpointError, match=refused):
            release.write(tmp_path, small("1.2.0", description=other))
        assert contents(tmp_path) == before
        release.write(tmp_path, small("3.0.0", description=other))
        assert sound(tmp_path, run=True) == ["1.1.0", "2.3.0", "3.0.0"]

    @pytest.mark.parametrize("form", [PLAIN, SAFE])
    def test_shapes_are_compared_where_configs_say_nothing(self, tmp_path, form):
        plain = {"description": None, "config": {"width": 3}, "form": form, "name": "net"}
        release.write(tmp_path, small("1.0.0", weights={"w": torch.ones(2, 3)}, **plain))
        release.write(tmp_path, small("1.1.0", weights={"w": torch.zeros(2, 3)}, **plain))
        with pytest.raises(CheckpointError, match=r"fit 1\.1\.0: w is \[2, 4\] and was \[2, 3\]\."):
            release.write(tmp_path, small("1.2.0", weights={"w": torch.zeros(2, 4)}, **plain))

    def test_a_damaged_predecessor_is_in_nobodys_way(self, tmp_path, caplog):
        first = release.write(tmp_path, small("1.0.0"))
        (tmp_path / first.file).write_bytes(b"")
        release.write(tmp_path, small("1.1.0"))
        assert "shapes of 1.1.0 are not compared with 1.0.0" in caplog.text
        with pytest.raises(CheckpointError, match="the list of classes"):
            release.write(tmp_path, small("1.2.0", description=replace(DESCRIPTION, classes=("a", "b"))))


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda w: w | {FIRST: w[FIRST] * torch.nan}, f"{FIRST} holds NaN or infinite values"),
            (lambda w: w | {FIRST: w[FIRST] * torch.inf}, f"{FIRST} holds NaN or infinite values"),
            (
                lambda w: {name: torch.full_like(v, 1e30) for name, v in w.items()},
                "output is NaN or infinite",
            ),
            (lambda w: {name: v for name, v in w.items() if name != FIRST}, "of another network"),
        ],
    )
    def test_weights_that_cannot_serve(self, tmp_path, change, message):
        made = small("1.0.0")
        with pytest.raises(CheckpointError, match=message):
            release.write(tmp_path, replace(made, weights=change(dict(made.weights))))
        assert contents(tmp_path) == {}

    @pytest.mark.parametrize("form", [PLAIN, SAFE], ids=lambda form: form.format)
    @pytest.mark.parametrize("where", ["config", "card"])
    def test_what_is_not_plain(self, tmp_path, form, where):
        plain = {"description": None, "config": {}, "card": {}}
        with pytest.raises(CheckpointError, match=r"\['path'\] is of type pathlib\."):
            release.write(tmp_path, small("1.0.0", form=form, **{**plain, where: {"path": tmp_path}}))
        assert contents(tmp_path) == {}

    def test_a_place_that_is_a_file(self, tmp_path):
        (tmp_path / "root").write_text("")
        with pytest.raises(CheckpointError, match="could not be written to"):
            release.write(tmp_path / "root", small("1.0.0"))
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "production").write_text("")
        with pytest.raises(CheckpointError, match="could not be written to"):
            release.write(tmp_path / "other", small("1.0.0"))

    def test_a_journal_that_was_changed_stops_before_anything_is_written(self, tmp_path):
        release.write(tmp_path, small("1.0.0"))
        before = contents(tmp_path)
        path = tmp_path / "metadata" / "journal.jsonl"
        path.write_text(path.read_text().replace("a test of", "the test of"))
        with pytest.raises(CheckpointError, match="was changed after it was written"):
            release.write(tmp_path, small("1.1.0"))
        assert contents(tmp_path) == before

    def test_a_name_that_no_file_can_have(self, tmp_path):
        for name in ("", ".hidden", "x" * 200):
            with pytest.raises(CheckpointError, match="is not a valid name of a file"):
                release.write(tmp_path, small("1.0.0", name=name))
        assert contents(tmp_path) == {}

    def test_a_checkpoint_that_does_not_say_its_network(self, manager, tmp_path, t):
        path = manager.save_training_checkpoint(t.model, t.optimizer, epoch=0, step=0)
        root, manifest = locate.locate(path)
        with pytest.raises(CheckpointError, match="does not record its network"):
            release.of(root, manifest, version="1.0.0", form=PLAIN, reason="")

    def test_what_is_no_tensor_in_safetensors(self, tmp_path):
        facts = {"description": None, "weights": {"a": torch.ones(2), "extra": 3}}
        with pytest.raises(CheckpointError, match="extra is of type int: safetensors holds tensors alone"):
            release.write(tmp_path, small("1.0.0", form=SAFE, **facts))
        release.write(tmp_path, small("1.0.0", **facts))
