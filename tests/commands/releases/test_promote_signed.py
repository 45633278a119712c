"""promote and verify with signatures."""

import json
import os
import shlex
import shutil
import subprocess

from peakpoint import load_model
from peakpoint.deployment.release import signing
from tests.commands.releases.promote_cases import refused
from tests.deployment.release.test_signing import allow, make_key


def test_a_signed_release_and_a_manifest_that_was_tampered_with(trained, promote, tmp_path, cli_main):
    key = make_key(tmp_path / "key")
    allowed = allow(tmp_path / "allowed", ("ada@lab", key))
    out = promote(trained, "1.0.0", "--set", f"sign={key}").output()
    mark = trained / "checkpoints" / "production" / "lenet5_v1.0.0.json"
    assert f"wrote  {mark}.sig" in out
    out = cli_main("verify", trained, "--allowed-signers", allowed).succeeded().out
    assert f"signed by ada@lab: {mark.with_suffix('.pt')}" in out
    strangers = allow(tmp_path / "strangers", ("eve@lab", make_key(tmp_path / "eve")))
    out = cli_main("verify", mark, "--allowed-signers", strangers).failed().out
    assert out.count("bad: ") == 1
    # Write access suffices to seal a manifest anew: only the signature shows the change.
    found = json.loads(mark.read_text())
    found.pop("check")
    found["metrics"]["accuracy"] = 0.99
    from peakpoint.checkpointing.storage.manifest import sealed

    mark.write_text(sealed(json.dumps(found, indent=2)))
    assert cli_main("verify", mark)[0] == 0
    out = cli_main("verify", mark, "--allowed-signers", allowed).failed().out
    assert "was changed after it was signed" in out


def test_a_signature_that_fails_after_the_release_names_it(trained, promote, tmp_path, monkeypatch):
    key = make_key(tmp_path / "key")
    real, folder = shutil.which("ssh-keygen"), tmp_path / "bin"
    folder.mkdir()
    script = f'#!/bin/sh\ntest -e {folder}/used && exit 1\ntouch {folder}/used\nexec {real} "$@"\n'
    (folder / "ssh-keygen").write_text(script)  # signs once, which is the trial before anything is written
    (folder / "ssh-keygen").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    message = refused(promote(trained, "1.0.0", "--set", f"sign={key}"))
    file = trained / "checkpoints" / "production" / "lenet5_v1.0.0.pt"
    assert message.startswith(f"1.0.0 is released as {file}, but it is not signed: ")
    load_model(file)
    monkeypatch.undo()
    by_hand = shlex.split(message.split("To sign it: ")[1])
    subprocess.run(by_hand, check=True, capture_output=True)
    assert signing.signer(file.with_suffix(".json"), allow(tmp_path / "allowed", ("ada", key))) == "ada"


def test_a_release_without_a_signature(trained, promote, tmp_path, cli_main):
    allowed = allow(tmp_path / "allowed", ("ada@lab", make_key(tmp_path / "key")))
    assert cli_main("verify", trained, "--allowed-signers", allowed)[0] == 0  # checkpoints are not signed
    promote(trained, "1.0.0")
    out = cli_main("verify", trained, "--allowed-signers", allowed, "--json").failed().out
    bad = [v for v in json.loads(out) if v["problem"]]
    assert [v["file"] for v in bad] == ["production/lenet5_v1.0.0.pt"]
    assert "is not signed" in bad[0]["problem"]
    assert "is not a file: name a list of allowed signers" in refused(
        cli_main("verify", trained, "--allowed-signers", tmp_path / "nothing")
    )


def test_the_manifest_of_a_safetensors_release_by_its_name(trained, promote, cli_main):
    promote(trained, "1.0.0", "--set", "format=safetensors")
    mark = trained / "checkpoints" / "production" / "lenet5_v1.0.0.json"
    assert cli_main("verify", mark).succeeded().out[:16] == "1 checked, 0 bad"
