"""Releases and their aliases in ls, why and repair, and under the names of their pointers."""

import json

import pytest

from peakpoint import load_model
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.storage import aliases, journal, locate
from peakpoint.deployment.release import changelog
from peakpoint.deployment.release.rollback import roll_back
from tests.checkpointing.checkpoint_cases import damage, points
from tests.checkpointing.release_cases import gone


@pytest.fixture
def served(served):
    """1.1.0 is the champion after 1.0.0, and 1.2.0 was a challenger."""
    aliases.assign(served, "champion", "1.0.0", "the first")
    aliases.assign(served, "champion", "1.1.0", "better")
    aliases.assign(served, "challenger_1", "1.2.0", "to try")
    aliases.assign(served, "challenger_1", None, "tried")
    changelog.write(served)
    return served


def tamper(root):
    path = root / journal.JOURNAL
    path.write_text(path.read_text().replace("better", "worse"))


def test_ls_names_the_champion(served, cli_main):
    (row,) = (line for line in cli_main("ls", served).succeeded().out.splitlines() if "champion;" in line)
    assert row.split()[0] == "le_net5_v1.1.0.pt"
    assert row.endswith("champion; release 1.1.0")
    found = {each["tags"][0]: each["aliases"] for each in json.loads(cli_main("ls", served, "--json")[1])}
    assert found == {"v1.0.0": [], "v1.1.0": ["champion"], "v1.2.0": [], "v1.10.0": []}
    tamper(served)
    out = cli_main("ls", served).failed().out
    assert ("le_net5_v1.1.0.pt" in out, "damaged: " in out) == (True, True)


def test_why_shows_the_aliases_of_a_release_and_what_it_replaced(served, cli_main):
    path = served / "production" / "le_net5_v1.1.0.pt"
    out = cli_main("why", path).succeeded().out
    released, moved, kept = out.splitlines()
    assert released == "released  1.1.0: release 1.1.0"
    assert moved.endswith("  champion: 1.0.0 -> 1.1.0, set: better")
    assert kept == "kept   releases are never deleted; it is champion"
    assert cli_main("why", served / "production" / "champion.pt")[1] == out
    message = json.loads(cli_main("why", path, "--json")[1])
    assert (message["aliases"], [c["before"] for c in message["changes"]]) == (["champion"], ["1.0.0"])
    out = cli_main("why", served / "production" / "le_net5_v1.0.0.pt")[1]
    assert out.count("alias  ") == 2
    assert out.endswith("kept   releases are never deleted\n")
    damage(path)
    code, out, err = cli_main("why", path)
    assert (code, out) == (1, "")
    assert err.endswith("Restore it from a copy, and roll back what names it meanwhile.\n")


def test_why_of_a_release_that_was_deleted_by_hand(served, cli_main):
    gone(served, "1.1.0")
    out = cli_main("why", served / "production" / "le_net5_v1.1.0.pt").succeeded().out
    assert [line.split("  ")[0] for line in out.splitlines()] == ["released", "alias"]
    assert out.splitlines()[1].endswith("  champion: 1.0.0 -> 1.1.0, set: better")
    message = json.loads(cli_main("why", served / "production" / "le_net5_v1.1.0.pt", "--json")[1])
    assert [each["file"] for each in message] == ["production/le_net5_v1.1.0.pt"] * 2


@pytest.mark.parametrize("dry", [True, False])
def test_pointers_and_changelog_are_rebuilt_from_the_journal(served, cli_main, dry):
    folder = served / "production"
    (folder / "champion.pt").unlink()
    (folder / "champion.pt").symlink_to("le_net5_v1.0.0.pt")  # as after a kill between the line and the link
    (folder / "challenger_1.pt").symlink_to("le_net5_v1.2.0.pt")
    (served / changelog.CHANGELOG).write_text("edited by hand")
    out = cli_main("repair", served, *["--dry-run"] * dry).succeeded().out
    assert out.splitlines()[:-1] == [
        "point  production/champion.pt: to le_net5_v1.1.0.pt; it named le_net5_v1.0.0.pt",
        "unlink  production/challenger_1.pt: it names le_net5_v1.2.0.pt, and challenger_1 names no release",
        "write  metadata/CHANGELOG.md: it was out of date",
    ]
    if dry:
        assert points(folder / "champion.pt") == "le_net5_v1.0.0.pt"
        assert (served / changelog.CHANGELOG).read_text() == "edited by hand"
        return
    assert points(folder / "champion.pt") == "le_net5_v1.1.0.pt"
    assert not (folder / "challenger_1.pt").is_symlink()
    assert (served / changelog.CHANGELOG).read_text() == changelog.text(served)
    assert "0 repairs done" in cli_main("repair", served)[1]


def test_a_missing_changelog_is_written_where_there_are_releases(served, run, cli_main):
    (served / changelog.CHANGELOG).unlink()
    assert "write  metadata/CHANGELOG.md: it was missing" in cli_main("repair", served)[1]
    assert "write" not in cli_main("repair", run)[1]


def test_a_champion_that_is_damaged_goes_to_quarantine_and_is_reported(served, cli_main):
    damage(served / "production" / "le_net5_v1.1.0.pt")
    out = cli_main("repair", served).failed().out
    lost = " (it was damaged and lies under quarantine)"
    assert (
        f"not repaired  champion: there is no release 1.1.0 under {served} any more{lost}: roll back" in out
    )
    assert f"`production/le_net5_v1.1.0.pt`{lost}\n" in (served / changelog.CHANGELOG).read_text()
    for command in (
        ("alias", served, "challenger_1", "1.1.0"),
        ("rollback", served, "--alias", "challenger_1", "--to", "1.1.0"),
    ):
        assert f"{served} has no release 1.1.0{lost}" in cli_main(*command)[2]
    assert cli_main("repair", served, "--json").failed().err.startswith("not repaired: champion: ")
    roll_back(served)
    assert cli_main("repair", served)[0] == 0


def test_a_journal_that_was_changed_is_reported_and_no_pointer_follows_it(served, cli_main):
    tamper(served)
    (served / "production" / "champion.pt").unlink()
    out = cli_main("repair", served).failed().out
    assert "point  " not in out
    assert "not repaired  " in out
    assert "was changed after it was written" in out


def test_verify_counts_the_journal_and_what_aliases_name(served, cli_main):
    assert cli_main("verify", served)[0] == 0
    gone(served, "1.1.0")
    out = cli_main("verify", served).failed().out
    assert out.count("bad: champion: there is no release 1.1.0 under") == 1
    tamper(served)
    (bad,) = (v for v in json.loads(cli_main("verify", served, "--json").failed().out) if v["problem"])
    assert bad["file"] == "metadata/journal.jsonl"
    assert "was changed after it was written" in bad["problem"]
    assert cli_main("repair", served)[0] == 1
    assert (served / journal.JOURNAL).exists()


def test_the_pointer_of_an_alias_is_only_a_name(served):
    link = served / "production" / "champion.pt"

    def weight():
        return round(next(load_model(link).parameters()).flatten()[0].item() * 100) - 1

    link.unlink()
    assert weight() == 1
    link.symlink_to("le_net5_v1.2.0.pt")
    assert weight() == 1
    damage(served / "production" / "le_net5_v1.1.0.pt")
    with pytest.raises(CheckpointError, match="its bytes changed"):
        load_model(link)
    assert (served / "production" / "le_net5_v1.1.0.pt").exists()
    gone(served, "1.1.0")
    with pytest.raises(CheckpointError, match=r"champion is 1\.1\.0, which is not under"):
        locate.locate(link)
    with pytest.raises(CheckpointError, match="challenger_1 names no release"):
        locate.locate(served / "production" / "challenger_1.pt")
    with pytest.raises(CheckpointError, match="does not exist"):
        locate.locate(served / "production" / "challenger_2.pt")
