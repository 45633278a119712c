"""Aliases: the journal is their only record, and damage to it is reported or does no harm."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peakpoint.base.errors import CheckpointError, SaveFailed
from peakpoint.base.files import STAGED_PREFIX
from peakpoint.checkpointing.storage import aliases, journal
from peakpoint.deployment.inference import network
from tests.checkpointing.checkpoint_cases import files_no_larger_than, points
from tests.checkpointing.release_cases import VERSIONS, gone, history
from tests.faults.fault_cases import in_child

START = datetime(2026, 11, 1, tzinfo=UTC)


def lines(root):
    return (root / journal.JOURNAL).read_text().splitlines()


@pytest.mark.parametrize(
    "name",
    ["latest", "Champion", "challenger", "challenger_", "challenger_a/b", "../champion", "champion\n", ""],
)
def test_other_names_are_refused(served, name):
    with pytest.raises(CheckpointError, match="is not an alias: use champion"):
        aliases.assign(served, name, "1.0.0", "")
    assert not list((served / "production").glob("*champion*"))


def test_it_names_a_release_until_it_is_taken_away(served):
    first = aliases.assign(served, "champion", "1.0.0", "the first")
    assert (first.version, first.before, first.how, first.reason) == ("1.0.0", None, "set", "the first")
    assert aliases.assign(served, "champion", "1.0.0", "again") is None
    aliases.assign(served, "challenger_1", "1.10.0", "to try")
    assert aliases.current(served) == {"champion": "1.0.0", "challenger_1": "1.10.0"}
    link = served / "production" / "challenger_1.pt"
    assert points(link) == "le_net5_v1.10.0.pt"
    last = aliases.assign(served, "challenger_1", None, "ended")
    assert (last.version, last.before, last.how) == (None, "1.10.0", "removed")
    assert aliases.current(served) == {"champion": "1.0.0"}
    assert not link.is_symlink()
    assert history(served, "challenger_1") == ["1.10.0", None]


def test_a_line_says_what_when_and_why_and_nobody(served):
    aliases.assign(served, "champion", "1.0.0", "the first")
    fact = json.loads(lines(served)[-1])
    assert list(fact) == ["number", "time", "event", "alias", "version", "before", "how", "reason", "check"]


def test_a_release_that_is_not_there_is_refused_and_one_that_went_is_reported(served):
    with pytest.raises(CheckpointError, match=r"has no release 2\.0\.0"):
        aliases.assign(served, "champion", "2.0.0", "")
    aliases.assign(served, "champion", "1.1.0", "")
    gone(served, "1.1.0")
    assert aliases.current(served) == {"champion": "1.1.0"}
    with pytest.raises(CheckpointError, match=r"champion is 1\.1\.0, which is not under"):
        network.resolve(served)


def test_a_file_of_somebody_under_its_name_is_left_alone(served):
    mine = served / "production" / "champion.pt"
    mine.write_bytes(b"of the user")
    aliases.assign(served, "champion", "1.1.0", "")
    aliases.assign(served, "champion", None, "")
    assert mine.read_bytes() == b"of the user"
    latest = served / "production" / "latest.pt"
    latest.unlink(missing_ok=True)
    latest.write_bytes(b"that a copy has made of the link")
    aliases.point_latest(served)
    assert points(latest) == "le_net5_v1.10.0.pt"


@st.composite
def deeds(draw):
    """Changes of two aliases, each at a time that may lie before the one before."""
    steps = draw(st.lists(st.integers(-40, 100), min_size=1, max_size=12))
    return [
        (step, draw(st.sampled_from(["champion", "challenger_1"])), draw(st.sampled_from([None, *VERSIONS])))
        for step in steps
    ]


@pytest.fixture(scope="module")
def template(four_releases, tmp_path_factory):
    root = tmp_path_factory.mktemp("template") / "served"
    shutil.copytree(four_releases, root, symlinks=True)
    return root


@settings(max_examples=60, deadline=None)
@given(deeds=deeds(), asked=st.lists(st.integers(-60, 1300), min_size=1, max_size=8))
def test_the_history_is_the_replay_of_what_was_done(template, deeds, asked):
    """A change counts as no later than any after it: a clock that was ahead is corrected by the next."""
    for path in (template / journal.JOURNAL, *(template / "production").glob("c*.pt")):
        path.unlink(missing_ok=True)
    clock, done = 0, []
    for step, alias, version in deeds:
        clock += step
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal, "utc_now", lambda now=clock: (START + timedelta(seconds=now)).isoformat())
            change = aliases.assign(template, alias, version, "because")
        known = {a: v for _, a, v in done}.get(alias)
        assert (change is None) == (version == known)
        if change is not None:
            assert change.before == known
            done.append((clock, alias, version))
    last = {alias: version for _, alias, version in done}
    assert aliases.current(template) == {alias: version for alias, version in last.items() if version}
    for alias in ("champion", "challenger_1"):
        mine = [(time, version) for time, name, version in done if name == alias]
        corrected = [(min(t for t, _ in mine[i:]), version) for i, (_, version) in enumerate(mine)]
        for when in [*asked, *(t for t, _ in mine)]:
            expected = None
            for time, version in corrected:
                if time > when:
                    break
                expected = version
            assert aliases.at(template, alias, START + timedelta(seconds=when)) == expected
        link = template / "production" / f"{alias}.pt"
        assert (link.is_symlink() and points(link)) == (
            f"le_net5_v{last[alias]}.pt" if last.get(alias) else False
        )


def test_processes_that_set_one_alias_at_once_are_serialised(served):
    def work(which, say):
        for turn in range(12):
            version = VERSIONS[(which + turn) % len(VERSIONS)]
            if aliases.assign(served, "champion", version, f"process {which}"):
                say("changed")

    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda which: in_child(lambda say: work(which, say)), range(4)))
    assert [code for code, _ in ended] == [0] * 4
    found = list(aliases.changes(served, "champion"))
    assert len(found) == sum(len(stated) for _, stated in ended) > 12
    assert [c.before for c in found] == [None, *(c.version for c in found[:-1])]
    numbers = [fact["number"] for fact in journal.recorded(served)]
    assert numbers == list(range(1, len(VERSIONS) + len(found) + 1))
    assert points(served / "production" / "champion.pt") == f"le_net5_v{found[-1].version}.pt"


def test_lines_of_processes_that_record_at_once_have_numbers_of_their_own(tmp_path):
    def work(say):
        for turn in range(25):
            journal.record(tmp_path, "released", {"version": f"1.0.{turn}"})

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: in_child(work)[0], range(4))) == [0] * 4
    assert [fact["number"] for fact in journal.recorded(tmp_path)] == list(range(1, 101))


def three(root):
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        aliases.assign(root, "champion", version, f"{version} | <was> better")
    return root / journal.JOURNAL


def test_no_flipped_bit_changes_an_answer(served):
    path = three(served)
    whole, facts = path.read_bytes(), journal.recorded(served)
    reported = 0
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert journal.recorded(served) == facts, (bit, bytes(data))
        except CheckpointError:
            reported += 1
    sealed = sum(len(line) for line in whole.splitlines() if b'"check"' in line)
    assert reported >= 8 * sealed


def test_a_last_line_that_was_cut_short_is_as_if_it_had_not_been_written(served):
    path = three(served)
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        written = cut == len(whole) - 1  # only its newline is missing
        assert aliases.current(served) == {"champion": "1.2.0" if written else "1.1.0"}
        aliases.assign(served, "champion", "1.10.0", "next")
        assert history(served) == ["1.0.0", "1.1.0", *["1.2.0"] * written, "1.10.0"]


@pytest.mark.parametrize(
    ("tamper", "what"),
    [
        (lambda found: [*found[:-1], found[-1].replace("1.2.0", "1.0.0")], "line 7 was changed after"),
        (lambda found: [*found, found[4]], "line 8 was written earlier, and put in again"),
        (lambda found: [*found, found[-1]], "line 8 was written earlier, and put in again"),
        (lambda found: [*found[:4], found[5], found[4], found[6]], "line 6 was written earlier"),
        (
            lambda found: [*found, '{"event": "alias", "alias": "champion", "version": "1.0.0"}'],
            "line 8 was ch",
        ),
    ],
    ids=["changed", "put in again", "written twice", "moved", "without a digest"],
)
def test_a_tampered_line_is_reported_in_one_line_and_nothing_is_answered(served, tamper, what):
    path = three(served)
    found = lines(served)
    path.write_text("\n".join(tamper(found)) + "\n")
    for ask in (
        lambda: aliases.current(served),
        lambda: aliases.at(served, "champion", START),
        lambda: aliases.assign(served, "champion", "1.10.0", ""),
        lambda: network.resolve(served),
    ):
        with pytest.raises(CheckpointError) as refused:
            ask()
        assert what in str(refused.value)
        assert str(refused.value).endswith("Restore the file from a copy, or take that line out by hand.")
    path.write_text("\n".join(found[:-1]) + "\n")  # as it says
    assert aliases.current(served) == {"champion": "1.1.0"}


@pytest.mark.parametrize(
    "line", ['{"event": [1]}', '{"event": {}}', "[" * 100_000, "9" * 10_000, '{"a":' * 9999]
)
def test_lines_of_somebody_else_are_passed_over(served, line):
    path = three(served)
    path.write_text(f"{line}\n{path.read_text()}{line}\n")
    assert aliases.current(served) == {"champion": "1.2.0"}
    aliases.assign(served, "champion", "1.0.0", "")
    assert history(served)[-1] == "1.0.0"


def test_a_line_of_another_version_is_reported(tmp_path):
    journal.record(tmp_path, "alias", {"name": "champion"})
    with pytest.raises(CheckpointError, match="use the version of Peakpoint that wrote it"):
        aliases.current(tmp_path)


def test_a_journal_that_cannot_be_read_is_not_one_without_aliases(served):
    path = three(served)
    path.rename(path.with_name("aside"))
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read: it is not a regular file"):
        aliases.current(served)


def test_a_full_disk_is_reported_and_the_alias_stays(served):
    path = three(served)
    with files_no_larger_than(path.stat().st_size + 50), pytest.raises(SaveFailed, match="cannot be written"):
        aliases.assign(served, "champion", "1.0.0", "")
    assert aliases.current(served) == {"champion": "1.2.0"}
    aliases.assign(served, "champion", "1.0.0", "")
    assert history(served) == ["1.0.0", "1.1.0", "1.2.0", "1.0.0"]


def change(version, how="set", before=None):
    return aliases.Change(time=START, alias="champion", version=version, before=before, how=how, reason="")


@pytest.mark.parametrize(
    ("named", "before"),
    [
        ("", None),
        ("1.0", None),
        ("1.0 1.1", "1.0"),
        ("1.0 1.1 1.2", "1.1"),
        ("1.0 1.1 1.2 <1.1", "1.0"),
        ("1.0 1.1 1.2 <1.1 <1.0", None),
        ("1.0 1.1 <1.0 1.2", "1.0"),
        ("1.0 1.1 <1.0 1.2 1.3 <1.2", "1.0"),
        ("1.0 1.1 1.2 <1.0", None),
        ("1.0 1.1 <0.9", "1.0"),
        ("1.0 1.1 1.0", "1.1"),
        ("1.0 1.1 1.0 1.2 <1.0 <1.1", None),
        ("1.0 1.1 -", "1.1"),
        ("1.0 1.1 - 1.2", "1.1"),
        ("- 1.0", None),
    ],
)
def test_the_release_before_is_never_one_that_was_rolled_back_from(named, before):
    reported, now = [], None
    for word in named.split():
        version = None if word == "-" else word.removeprefix("<")
        reported.append(change(version, "rolled back" if word[0] == "<" else "set", now))
        now = version
    assert aliases.before(reported) == before


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["1.0", "1.1", "1.2", None, "back"]), max_size=14))
def test_going_back_again_and_again_ends_and_never_meets_what_was_left(deeds):
    """Whatever was set before: each step back is to another release that once had the alias."""
    reported: list[aliases.Change] = []
    for deed in [*deeds, *["back"] * 5]:
        now = reported[-1].version if reported else None
        version = aliases.before(reported) if deed == "back" else deed
        if deed == "back" and version is None:
            continue
        if version != now:
            reported.append(change(version, "rolled back" if deed == "back" else "set", now))
    last = max((i for i, each in enumerate(reported) if each.how == "set"), default=0)
    back = [each.version for each in reported[last + 1 :]]
    left = [each.before for each in reported[last + 1 :]]
    assert not set(back) & {version for version in left if version is not None} - set(back[:-1])
    assert len(back) == len(set(back))
    assert aliases.before(reported) is None
    assert set(back) <= {each.version for each in reported[: last + 1]}


def test_no_staged_link_is_left(served):
    three(served)
    assert not list(served.rglob(f"{STAGED_PREFIX}*"))
