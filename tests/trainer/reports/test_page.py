"""report.html: escaped, complete, of any run, and in a real browser."""

import json
import os
import re
import shutil
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import pytest

from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import UserError
from peakpoint.checkpointing.events import EvalEnd
from peakpoint.commands.dispatch import main
from peakpoint.trainer.reports import page
from peakpoint.trainer.reports.charts import study as study_charts
from peakpoint.trainer.reports.charts.pareto import front
from peakpoint.trainer.reports.charts.run import charts
from peakpoint.trainer.reports.history import History, PeakRow
from peakpoint.trainer.reports.sections import Table
from peakpoint.trainer.reports.study import Result
from tests.trainer.reports.test_report import eval_row, train_row, written

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "<script>document.title='owned'</script>\x1b[31m$\\frac{" + "x" * 3000
NETWORK = ("src=", "http:", "https:", "@import", "url(http")


@pytest.fixture(scope="module")
def made(pruned_run, tmp_path_factory):
    """The page of a pruned run, in a folder of its own."""
    return page.write([pruned_run], tmp_path_factory.mktemp("page"))


def test_the_page_of_a_run_has_all_its_charts_which_lie_beside_it(made):
    names = ["metric", "loss", "sparsity", "pareto", "layers", "lr", "grad_norm", "stalls", "confusion"]
    files = sorted(file.name for file in (made.parent / "report").iterdir())
    assert files == sorted(f"{name}.{end}" for name in names for end in ("png", "svg"))
    text = made.read_text()
    for heading in ("Peak and final", "Learning curves", "Sparsity", "Storage", "Record"):
        assert f"<h2>{heading}</h2>" in text
    assert text.count("<svg") == len(names)


def test_a_kept_checkpoint_says_why_when_it_is_pointed_at(made):
    found = ET.parse(made.parent / "report" / "sparsity.svg")
    tips = [title.text for title in found.iter("{http://www.w3.org/2000/svg}title")]
    assert any("best_accuracy" in tip and ": " in tip for tip in tips)


def test_the_page_names_nothing_outside_itself_and_its_ids_are_its_own(made):
    text = made.read_text()
    body = re.sub("<details>.*?</details>", "", text, flags=re.DOTALL)  # the diff of the code may name any
    body = body.replace("http://www.w3.org/", "").replace("script-src", "")
    assert not [word for word in NETWORK if word in body]
    ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
    assert len(ids) == len(set(ids))


def test_matplotlib_is_left_as_it_was(pruned_run, tmp_path):
    settings = mpl.rcParams.copy()
    page.write([pruned_run], tmp_path)
    assert mpl.rcParams.copy() == settings


@pytest.mark.parametrize(
    "found",
    [
        [],
        [eval_row(1, 0.5)],
        [train_row(1, "nan")],
        [eval_row(1, "nan"), eval_row(2, 0.0), eval_row(3, 0.4, loss="inf")],
        [train_row(1, "nan"), eval_row(1, 0.5, sparsity=0.9), train_row(11, "inf")],
        [train_row(1, 1e300), eval_row(1, 1e308, loss=-1e308)],
    ],
)
def test_odd_runs_have_a_page(tmp_path, found):
    run = written(tmp_path, found)
    assert page.write([run], run).stat().st_size > 1000


def test_evaluations_within_an_epoch_have_places_of_their_own():
    evals = [EvalEnd(epoch, step, {"accuracy": 0.5}, 0.1, 0) for epoch, step in ((1, 5), (1, 10), (2, 15))]
    [metric, *_] = charts(History(evals, [], {}, [], 0), "accuracy", "max", [])
    [axes] = metric.figure.axes
    assert list(axes.lines[0].get_xdata()) == [0.5, 1.0, 1.5]


def test_a_column_of_numbers_is_one_with_a_missing_value_and_a_value_of_words_is_none():
    table = Table(["fact", "a", "b", "c"], [["x", None, "1.0", "3.11"], ["y", "2%", "nan", "no"]])
    assert table.kinds == ["", "n", "n", ""]
    assert Table(["a", "b"], []).kinds == ["", "n"]


def test_a_run_without_its_record_has_a_page_that_says_so(tmp_path):
    run = written(tmp_path, [eval_row(1, 0.5)])
    (run / "run.json").unlink()
    (run / "confusion.json").write_text('{"cells": [[9, 9, "x"]], "classes": ["a"], "which": "final"}')
    text = page.write([run], run).read_text()
    assert "run.json cannot be read" in text
    assert "is not a confusion matrix" in text


def hostile(folder):
    """A run whose every text is an attack."""
    run = written(folder, [eval_row(1, 0.5), {**eval_row(2, 0.4, sparsity=0.5), "layers": {HOSTILE: 0.5}}])
    record = json.loads((run / "run.json").read_text())
    record |= {"attempts": [{"overrides": [f"model={HOSTILE}"], "command": HOSTILE}], "python": HOSTILE}
    (run / "run.json").write_text(json.dumps(record))
    (run / "status.json").write_text(json.dumps({"state": "failed", "error": HOSTILE}))
    return run


def test_what_a_stranger_wrote_is_text(tmp_path):
    run = hostile(tmp_path / "run")
    for paths in ([run], [run, hostile(tmp_path / "other")]):
        text = page.write(paths, tmp_path).read_text()
        assert text.count("<script>") == 1
        assert "\x1b" not in text
        assert "&lt;script&gt;document.title" in text


def test_a_folder_of_charts_that_leads_elsewhere_is_refused(tmp_path):
    run = written(tmp_path / "run", [eval_row(1, 0.5)])
    (tmp_path / "elsewhere").mkdir()
    (run / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="report"):
        page.write([tmp_path / "run"], run)


def test_the_page_of_several_runs(whole_run, pruned_run, tmp_path):
    runs = [
        whole_run,
        shutil.copytree(pruned_run, tmp_path / "a"),
        shutil.copytree(pruned_run, tmp_path / "b"),
    ]
    text = page.write(runs, tmp_path).read_text()
    for heading in ("Peak and final by optimizer", "Means over seeds", "Runs"):
        assert f"<h2>{heading}</h2>" in text
    files = {file.name for file in (tmp_path / "report").iterdir()}
    assert files == {
        f"{name}.{end}" for name in ("peaks", "sparsity", "bytes", "macs") for end in ("png", "svg")
    }
    text = page.write([*runs[:2], hostile(tmp_path / "bad")], tmp_path).read_text()
    for heading in ("Peak and final by model and optimizer", "Failed and unfinished"):
        assert f"<h2>{heading}</h2>" in text
    assert "Means over seeds" not in text


def test_charts_of_runs_with_different_metrics_have_files_of_their_own(tmp_path):
    first, second = (written(tmp_path / name, [eval_row(1, 0.5, loss=0.7)]) for name in ("a", "b"))
    record = json.loads((second / "run.json").read_text())
    record["config"]["checkpoint"]["monitor"] = {"metric": "loss", "mode": "min"}
    (second / "run.json").write_text(json.dumps(record))
    for run in (first, second):
        give_attempt(run)
    text = page.write([first, second], tmp_path).read_text()
    assert text.count("<svg") == 2
    files = {file.name for file in (tmp_path / "report").iterdir()}
    assert files == {f"{metric}-peaks.{end}" for metric in ("accuracy", "loss") for end in ("png", "svg")}


def give_attempt(run):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "attempts": [{"overrides": []}]}))
    (run / "status.json").write_text('{"state": "failed"}')


def test_the_front_has_what_no_other_beats():
    points = [(3, 0.5), (1, 0.4), (2, 0.4), (2, 0.6), (4, 0.6), (5, 0.7)]
    assert front(points) == [1, 3, 5]
    assert front([]) == []


def test_sizes_and_times_are_sorted_by_their_number(made):
    found = re.findall(r'data-value="(\d+)">([^<]+)<', made.read_text())
    assert found
    for value, text in found:
        assert in_words(int(value)) == text


def test_a_run_that_missed_its_target_is_not_drawn_as_one_that_reached_it():
    peak = PeakRow("overall", 1, 0.5, 0.5, 0.0, 0.7, 10)
    known = {"target": 0.7, "sparsity": 0.7, "overall": peak, "final": 0.5, "objective": 0.5}
    results = [Result(run=Path("missed"), **known), Result(run=Path("reached"), at_target=peak, **known)]
    [_, drawn] = study_charts.charts({"sgd": results}, "accuracy", "max")
    assert [tip.split()[0] for tip in drawn.tips.values()] == ["reached", "Pareto"]
    assert [*study_charts.charts({"sgd": results[:1]}, "accuracy", "max")][1].tips == {}


def test_means_are_of_runs_that_differ_in_the_seed_alone_and_the_front_is_of_means():
    def result(lr, seed, value, size):
        peak = PeakRow("overall", 1, value, value, 0.0, 0.7, 10)
        known = {"overall": peak, "at_target": peak, "objective": value, "target": 0.7, "sparsity": 0.7}
        values = {"optimizer.lr": lr, "seed": str(seed)}
        return Result(run=Path(f"{lr}-{seed}"), values=values, seed=seed, bytes=size, **known)

    results = [result("1", 0, 0.5, 90), result("1", 1, 0.7, 110), result("2", 0, 0.55, 200)]
    [*_, drawn] = study_charts.charts({"sgd": results}, "accuracy", "max")
    assert drawn.name == "bytes"
    assert [tip for tip in drawn.tips.values() if "Pareto" in tip] == ["Pareto front: sgd, mean of 2: 60.00%"]
    [axes] = drawn.figure.axes
    means = [line.get_data() for line in axes.lines if (line.get_marker(), line.get_markersize()) == ("_", 9)]
    assert [(*x, *y) for x, y in means] == [(100, pytest.approx(60)), (200, pytest.approx(55))]


def test_a_run_that_diverged_has_a_page(tmp_path, capsys):
    run = written(tmp_path, [train_row(1, "nan"), eval_row(1, "nan")])
    assert main(["report", str(run)]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: No evaluation has a finite accuracy")
    assert str(run / "report.html") in output.out
    assert "<svg" in (run / "report.html").read_text()


def test_a_run_without_an_evaluation_has_a_page_of_its_steps(tmp_path, capsys):
    run = written(tmp_path, [train_row(1), train_row(2)])
    assert main(["report", str(run)]) == 1
    assert "holds no evaluation yet" in capsys.readouterr().err
    assert 'aria-label="Loss: validation and training"' in (run / "report.html").read_text()


def test_a_run_that_was_killed_says_so_among_those_that_are_not_finished(tmp_path):
    runs = [written(tmp_path / name, [eval_row(1, 0.5)]) for name in "ab"]
    for run in runs:
        give_attempt(run)
    held = {"state": "running", "host": os.uname().nodename, "pid": 2**22 + 1}
    (runs[0] / "status.json").write_text(json.dumps(held))
    assert "its process is gone" in page.write(runs, tmp_path).read_text()


def test_a_run_is_watched_until_it_ends(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("peakpoint.commands.report.EVERY", 0.05)
    run = written(tmp_path, [eval_row(1, 0.5)])
    (run / "status.json").write_text('{"state": "running"}')
    refreshed = []

    def end():
        while not (run / "report.html").exists():
            time.sleep(0.05)
        refreshed.append('http-equiv="refresh"' in (run / "report.html").read_text())
        (run / "status.json").write_text('{"state": "failed", "error": "done"}')

    timer = threading.Timer(0.5, end)
    timer.start()
    try:
        assert main(["report", str(run), "--watch"]) == 0
    finally:
        timer.join()
    assert refreshed == [True]
    assert 'http-equiv="refresh"' not in (run / "report.html").read_text()
    assert "best epoch" in capsys.readouterr().out


def opened(file, folder, width=1440):
    """What a browser makes of a page: its DOM, its console, and the URLs that the page asked for."""
    log = folder / "net.json"
    flags = f"""--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
        --disable-background-networking --disable-component-update --enable-logging=stderr
        --window-size={width},900 --user-data-dir={folder / "profile"} --log-net-log={log} --dump-dom"""
    done = subprocess.run(
        [BROWSER, *flags.split(), file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    asked = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # The browser's own requests have no origin.
    ours = {each["url"] for each in asked if each.get("initiator", "not an origin") != "not an origin"}
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line], ours


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_loads_nothing_and_logs_no_error(made, tmp_path):
    dom, console, asked = opened(made, tmp_path, 375)
    assert '<button type="button">' in dom  # the script has run
    assert console == []
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_heading_is_a_button_that_sorts_by_the_numbers_of_its_column(pruned_run, tmp_path):
    runs = [shutil.copytree(pruned_run, tmp_path / name) for name in "abc"]
    for run, memory in zip(runs, (900_000, 2_000_000, 10_000), strict=True):
        status = json.loads((run / "status.json").read_text())
        (run / "status.json").write_text(json.dumps({**status, "peak_memory": memory}))
    text = page.write(runs, tmp_path).read_text()
    policy = re.search('<meta http-equiv="Content-Security-Policy"[^>]*>', text)
    press = "<script>[...document.querySelectorAll('th button')].at(-1).click()</script>"
    (tmp_path / "pressed.html").write_text(text.replace(policy[0], "").replace("</body>", f"{press}</body>"))
    dom, console, _ = opened(tmp_path / "pressed.html", tmp_path)
    assert console == []
    assert 'aria-sort="descending"' in dom
    assert re.findall(r"<tr><td[^>]*>([abc])</td>", dom) == ["b", "a", "c"]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_page_that_loads_something_or_fails_is_noticed(tmp_path):
    url = "http://127.0.0.1:9/x.png"
    (tmp_path / "bad.html").write_text(f"<img src='{url}'><script>nothing()</script>")
    _, console, asked = opened(tmp_path / "bad.html", tmp_path)
    assert any("nothing is not defined" in line for line in console)
    assert url in asked
