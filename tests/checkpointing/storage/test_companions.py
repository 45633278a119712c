"""The digests of the files beside a release: of those under its root alone."""

from dataclasses import replace

import pytest

from peakpoint import CheckpointError, load_model
from peakpoint.base.digests import SHA256, digest_of
from peakpoint.checkpointing.storage import store
from peakpoint.checkpointing.storage.manifest import companions_of, read_manifest
from peakpoint.checkpointing.storage.store import Store
from peakpoint.deployment.release import release
from tests.checkpointing.checkpoint_cases import saved
from tests.checkpointing.publish_cases import small


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "production/../../secret"])
def test_no_name_leaves_the_root(tmp_path, name):
    root = tmp_path / "root"
    manifest = release.write(root, small("1.0.0"))
    (tmp_path / "secret").write_text("secret")
    forged = {name: digest_of(tmp_path / "secret", SHA256)}
    mark = root / "production" / "lenet5_v1.0.0.json"
    mark.write_text(replace(manifest, companions=forged).to_json())
    with pytest.raises(CheckpointError, match="it leaves its folder"):
        store.verify(root, read_manifest(mark))
    with pytest.raises(CheckpointError, match="it leaves its folder"):
        load_model(root)


def test_metadata_of_other_tiers_is_their_owners(tmp_path):
    target = Store(tmp_path, "run")
    manifest = saved(target, metadata={"digests": {"training/a.pt": "of somebody"}})
    store.verify(tmp_path, manifest)
    assert companions_of(manifest) == {}


@pytest.mark.parametrize("companions", [{}, None])
def test_a_release_of_before_there_were_digests(tmp_path, companions):
    manifest = release.write(tmp_path, small("1.0.0"))
    store.verify(tmp_path, replace(manifest, companions=companions))
