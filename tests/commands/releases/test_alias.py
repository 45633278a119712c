"""alias, rollback and changelog at the command line."""

import json
import os
import time
from datetime import UTC, datetime, timedelta

import pytest

from peakpoint.base.lock import one_writer
from peakpoint.checkpointing.storage import aliases, journal
from peakpoint.commands.releases.alias import span
from tests.checkpointing.checkpoint_cases import damage
from tests.checkpointing.release_cases import gone, history


@pytest.fixture
def zone(monkeypatch, request):
    """Set the local time zone, by default half an hour off the hour: a wrong sign or day shows."""
    monkeypatch.setenv("TZ", getattr(request, "param", "Asia/Kolkata"))
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def clock(monkeypatch, moment):
    monkeypatch.setattr(journal, "utc_now", lambda: moment.isoformat(timespec="milliseconds"))


def test_set_list_show_and_remove(served, cli_main):
    assert cli_main("alias", served)[:2] == (0, f"No alias is set in {served}.\n")
    out = cli_main("alias", served, "champion", "1.0.0", "--reason", "the\nfirst [of] all").succeeded().out
    assert out.endswith("  champion: none -> 1.0.0, set: the first [of] all\n")
    assert out.count("\n") == 1
    cli_main("alias", served, "champion", "1.1.0")
    cli_main("alias", served, "challenger_1", "1.10.0", "--reason", "to try")
    out = cli_main("alias", served).out
    table = [line.split() for line in out.splitlines()[2:]]
    assert [(row[0], row[1]) for row in table] == [("challenger_1", "1.10.0"), ("champion", "1.1.0")]
    assert table[0][-2:] == ["to", "try"]
    out = cli_main("alias", served, "champion").succeeded().out
    assert (out.splitlines()[0], len(out.splitlines())) == ("champion: 1.1.0", 3)
    out = cli_main("alias", served, "challenger_1", "--remove", "--reason", "ended").out
    assert out.endswith("  challenger_1: 1.10.0 -> none, removed: ended\n")
    assert aliases.current(served) == {"champion": "1.1.0"}
    assert cli_main("alias", served, "challenger_1")[1].splitlines()[0] == "challenger_1: names no release"
    assert "- champion: 1.1.0\n" in (served / "metadata" / "CHANGELOG.md").read_text()


def test_json_of_all(served, cli_main):
    done = json.loads(cli_main("alias", served, "champion", "1.0.0", "--reason", "x", "--json")[1])
    assert datetime.fromisoformat(done.pop("time")).utcoffset() == timedelta(0)
    changed = {"alias": "champion", "version": "1.0.0", "before": None, "how": "set", "reason": "x"}
    assert done == changed
    cli_main("alias", served, "champion", "1.1.0")
    back = json.loads(cli_main("rollback", served, "--json")[1])
    assert (back["version"], back["how"]) == ("1.0.0", "rolled back")
    assert back["file"] == str(served / "production" / "le_net5_v1.0.0.pt")
    assert back["checked"] == ["digests", "network", "golden outputs"]
    (listed,) = json.loads(cli_main("alias", served, "--json")[1])
    assert (listed["version"], listed["problem"]) == ("1.0.0", None)
    shown = json.loads(cli_main("alias", served, "champion", "--json")[1])
    assert [c["version"] for c in shown["changes"]] == ["1.0.0", "1.1.0", "1.0.0"]
    log = json.loads(cli_main("changelog", served, "--json")[1])
    assert [entry["version"] for entry in log] == ["1.10.0", "1.2.0", "1.1.0", "1.0.0"]
    assert [len(entry["aliases"]) for entry in log] == [0, 0, 2, 3]
    assert log[0]["results"]["accuracy"] == [0.52, 0.6]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("best",), "'best' is not an alias: use champion"),
        (("champion", "3.0.0"), "has no release 3.0.0"),
        (("champion", ""), "'' is not a semantic version"),
        (("champion", "1.1.0"), "champion is 1.1.0 already."),
        (("challenger_1", "--remove"), "challenger_1 names no release already."),
        (("--remove",), "--remove takes the name of an alias"),
        (("champion", "1.0.0", "--remove"), "--remove takes the name of an alias"),
        (("champion", "1.0.0", "--on", "2026-11-01"), "--on and VERSION exclude each other"),
        (("champion", "--reason", "x"), "--reason is for setting or removing"),
        (("--on", "yesterday"), "'yesterday' is not a date: give it as 2026-11-01"),
        (("--on", "9999-12-31"), "'9999-12-31' is not a date"),
        (("--on", "2999-12-30"), "2999-12-30 is still to come."),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_1(served, cli_main, arguments, what):
    aliases.assign(served, "champion", "1.1.0", "")
    code, out, err = cli_main("alias", served, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert what in err
    assert history(served) == ["1.1.0"]


def test_a_damaged_release_is_not_set(served, cli_main):
    aliases.assign(served, "champion", "1.0.0", "")
    damage(served / "production" / "le_net5_v1.1.0.pt")
    for command in (("alias", served, "champion", "1.1.0"), ("rollback", served, "--to", "1.1.0")):
        code, out, err = cli_main(*command)
        assert (code, out) == (1, "")
        assert err.endswith(
            "champion stays as it was.\n" if command[0] == "alias" else "champion stays 1.0.0.\n"
        )
    assert history(served) == ["1.0.0"]


def test_a_release_that_was_deleted_by_hand_is_reported(served, cli_main):
    aliases.assign(served, "champion", "1.1.0", "")
    (served / "production" / "le_net5_v1.1.0.pt").unlink()
    out = cli_main("alias", served).failed().out
    assert out.splitlines()[-1].startswith("champion: ")
    assert out.endswith("le_net5_v1.1.0.pt is gone: roll back to another release\n")
    gone(served, "1.1.0")
    out = cli_main("alias", served, "champion").failed().out
    assert f"champion: there is no release 1.1.0 under {served} any more" in out
    assert cli_main("rollback", served, "--to", "1.0.0")[0] == 0
    assert cli_main("alias", served)[0] == 0


def test_which_was_champion_on_a_day(served, cli_main, monkeypatch, zone):
    """Days are local, and end at midnight there: 18:30 of the same day in UTC."""
    for version, moment in (
        ("1.0.0", "2026-03-01T10:00+05:30"),
        ("1.1.0", "2026-03-02T23:59:59.999+05:30"),
        ("1.2.0", "2026-03-03T00:00+05:30"),
    ):
        clock(monkeypatch, datetime.fromisoformat(moment).astimezone(UTC))
        aliases.assign(served, "champion", version, f"as {version}")

    def answer(when):
        out = cli_main("alias", served, "champion", "--on", when).output()
        return out.splitlines()[0], len(out.splitlines()) - 1

    assert answer("2026-02-28") == ("champion on 2026-02-28: no release", 0)
    assert answer("2026-03-01") == ("champion on 2026-03-01: 1.0.0", 1)
    assert answer("2026-03-02") == ("champion on 2026-03-02: 1.1.0", 1)
    assert answer("2026-03-03") == ("champion on 2026-03-03: 1.2.0", 1)
    assert answer("2026-03-04") == ("champion on 2026-03-04: 1.2.0", 0)
    assert answer("2026-03-02T23:59")[0].endswith(": 1.0.0")
    assert answer("2026-03-02T18:29:59Z")[0].endswith(": 1.0.0")
    assert answer("2026-03-02T18:30:00Z")[0].endswith(": 1.2.0")
    found = json.loads(cli_main("alias", served, "--on", "2026-03-02", "--json")[1])
    assert found["at"] == "2026-03-02T18:29:59.999999+00:00"
    ((name, version, changed, _),) = (each.values() for each in found["answers"])
    assert (name, version, [c["reason"] for c in changed]) == ("champion", "1.1.0", ["as 1.1.0"])


def test_a_clock_that_went_backwards_is_reported(served, cli_main, monkeypatch):
    for version, day in (("1.0.0", 10), ("1.1.0", 5), ("1.2.0", 20)):
        clock(monkeypatch, datetime(2026, 3, day, tzinfo=UTC))
        aliases.assign(served, "champion", version, "")
    out = cli_main("alias", served, "--on", "2026-03-12").succeeded().out
    assert out.splitlines()[0] == "champion on 2026-03-12: 1.1.0"
    assert "The clock went backwards between changes" in out


def test_a_line_that_was_taken_out_is_reported(served, cli_main):
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        aliases.assign(served, "champion", version, "")
    path = served / journal.JOURNAL
    *others, _, last = path.read_text().splitlines()
    path.write_text("\n".join([*others, last]) + "\n")
    today = datetime.now().astimezone().strftime("%Y-%m-%d")
    for ask in (("champion",), ("--on", today)):
        out = cli_main("alias", served, *ask).succeeded().out
        assert out.count("A line is missing from the journal before ") == 1
        assert out.endswith(": 1.1.0 had the alias then.\n")
    assert len(json.loads(cli_main("alias", served, "champion", "--json")[1])["doubts"]) == 1


@pytest.mark.parametrize("zone", ["Europe/Berlin"], indirect=True)
def test_a_day_of_23_hours_ends_when_the_next_begins(zone):
    start, end = span("2026-03-29")
    assert (end - start).total_seconds() == pytest.approx(23 * 3600)
    assert end.astimezone(UTC) == datetime(2026, 3, 29, 21, 59, 59, 999999, tzinfo=UTC)


def test_rollback_says_what_it_did_also_while_the_run_is_being_written(served, cli_main):
    aliases.assign(served, "champion", "1.0.0", "")
    aliases.assign(served, "champion", "1.1.0", "")
    with one_writer(served):
        code, out, err = cli_main("rollback", served, "--to", "1.0.0", "--reason", "wrong on cats")
    assert (code, err) == (0, "")
    switched, verified = out.splitlines()
    assert switched.endswith("  champion: 1.1.0 -> 1.0.0, rolled back: wrong on cats")
    file = served / "production" / "le_net5_v1.0.0.pt"
    assert verified == f"{file}: verified before (digests, network, golden outputs)"


def test_a_reason_of_bytes_that_are_no_text_is_kept_as_text(served, cli_main):
    code, out, _ = cli_main(
        "alias", served, "champion", "1.0.0", "--reason", os.fsdecode(b"caf\xe9 \xc3\xa9")
    )
    assert (code, out.endswith("set: caf? \u00e9\n")) == (0, True)
    assert "caf? \u00e9" in (served / "metadata" / "CHANGELOG.md").read_text()


def test_a_journal_that_was_tampered_with_is_one_line(served, cli_main):
    aliases.assign(served, "champion", "1.1.0", "")
    path = served / journal.JOURNAL
    path.write_text(path.read_text().replace('"version": "1.1.0", "before"', '"version": "1.0.0", "before"'))
    for command in (("alias", served), ("rollback", served, "--to", "1.2.0"), ("changelog", served)):
        code, out, err = cli_main(*command)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "was changed after it was written" in err


def test_a_folder_that_can_only_be_read_answers_and_refuses_to_switch(served, cli_main):
    aliases.assign(served, "champion", "1.0.0", "")
    aliases.assign(served, "champion", "1.1.0", "")
    if os.getuid() == 0:
        (served / journal.JOURNAL).rename(served / "aside")
        (served / "metadata" / "journal.jsonl").symlink_to(served / "aside")  # opening it to write is refused
    else:
        (served / journal.JOURNAL).chmod(0o444)
    assert cli_main("alias", served)[0] == 0
    code, out, err = cli_main("rollback", served)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "journal.jsonl cannot be written" in err
    assert aliases.current(served) == {"champion": "1.1.0"}
