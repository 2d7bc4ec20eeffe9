"""Reports of made-up sweep directories, whole and broken."""

import csv
import re
import time
from dataclasses import replace

import pytest

from research.ablation.claims import Claim, Direction, Threshold
from research.ablation.experiment import Outcome
from research.ablation.measure import point_key
from research.errors import UserError
from research.report.judging.measuring import measure
from research.report.write import write_report
from tests.commands import run_cases
from tests.report.example import EXPERIMENT, build_and_report, read_page, simulate
from tests.report.synthetic_sweep import GAPS, build, failed, plausible


def test_complete(complete):
    summary, out, page = complete
    assert [j.verdict for j in summary.judgements] == ["supported"] * 4
    markdown = (out / "report.md").read_text()
    images = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert images and all((out / image).read_bytes().startswith(b"\x89PNG") for image in images)
    assert sorted(out.glob("*.png")) == sorted(out / image for image in images)
    assert "not finished" not in markdown
    assert "On 1 x86, 2 CPU cores." in markdown
    text = " ".join(page.text)
    assert "Paper, Fig. 2" in text and "40 of 40 runs finished" in text
    headings = [a for tag, a in page.tags if tag == "th" and "aria-sort" in a]
    assert headings and all(a["aria-sort"] == "none" for a in headings)
    sections = {a["id"] for tag, a in page.tags if tag == "section"}
    assert sections == {
        "verdicts", "outcome", "results", "axes", "curves", "slices", "steps", "budget", "rates",
        "tuning", "arms", "runs", "methods", "reproduce",
    }  # fmt: skip


def test_links_lead_to_the_files_of_the_runs_beside_the_report(tmp_path):
    summary, _, _ = build_and_report(tmp_path)
    workdir = summary.study.workdir
    write_report(workdir)
    page = read_page(workdir / "report.html")
    links = [url for url in page.urls if not url.startswith("#")]
    assert len(links) == 3 * len(summary.study.runs)
    assert all((workdir / link).is_file() for link in links)


def test_a_report_kept_apart_from_its_runs_links_to_nothing(complete):
    _, _, page = complete
    assert [url for url in page.urls if not url.startswith("#")] == []
    assert " ".join(page.text).count("result.json") >= 40


def test_unfinished(report):
    summary, out, page = report(finished=0.6)
    text = " ".join(page.text)
    assert "24 of 40 runs finished" in text and "16 runs still to come" in text
    assert summary.judgements[0].verdict == "cannot tell"
    assert "not finished" in summary.judgements[0].why
    assert "24 of 40 runs finished" in (out / "report.md").read_text()


def test_nothing_finished(report):
    summary, _, page = report(finished=0.0)
    assert "0 of 40 runs finished" in " ".join(page.text)
    assert {j.verdict for j in summary.judgements} == {"cannot tell"}
    assert summary.charts == []


def test_cells_not_written_yet_count_as_missing(tmp_path):
    build(tmp_path / "sweep", EXPERIMENT, simulate)
    (tmp_path / "sweep" / "cells.json").write_text("[]")
    summary = write_report(tmp_path / "sweep")
    assert summary.progress["waiting"] == 40


def test_one_seed(report):
    summary, _, page = report(replace(EXPERIMENT, seeds=(0,)))
    assert "one seed is not evidence" in " ".join(page.text)
    assert {j.verdict for j in summary.judgements} == {"cannot tell"}
    assert all("one seed is not evidence" in row.notes for row in summary.rows)


def test_slices_are_points_of_their_own(complete):
    summary, _, _ = complete
    data = measure(summary.study, "accuracy_by_gap")
    assert [p["slice"] for p in data.points[:4]] == GAPS
    run = summary.study.reported[0]
    for i, label in enumerate(GAPS):
        key = run.arm, point_key({**run.point, "slice": label})
        assert data.values[key][run.seed] == run.result["best"]["test"]["accuracy_by_gap"][i]


def test_names_are_text_everywhere(report):
    evil = '<script>alert("x")</script>'
    names = [evil, "ünïcode 注意", 'two  spaces & "quotes"', "{{script}} $x_1$ | `code` %s"]
    experiment = replace(
        EXPERIMENT,
        question=f"Why {evil}?",
        arms={name: {"model.mixer": name} for name in names},
        axes={'task.<b>"kind"</b>': ("<i>a</i>", "b c")},
        claims=(
            Claim(evil, evil, {evil: evil}, Direction(names[0], names[1])),
            Claim("published text", published=evil, test=Threshold(names[2], at_least=0.5)),
        ),
    )

    def run(arm, point, tuned, seed, generator):
        if arm == names[3] and seed == 2:
            return failed(f"Traceback\n{evil}")
        return plausible(0.9 + generator.normal(0, 0.01), generator)

    summary, out, page = report(experiment, run)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not {"b", "i"} & {tag for tag, a in page.tags if "class" not in a}
    text = " ".join(page.text)
    assert all(name in text for name in names)
    assert evil not in (out / "report.md").read_text()
    assert list(csv.DictReader((out / "results.csv").open()))[0]["arm"] == evil


@pytest.mark.parametrize("own", [True, False])
def test_the_report_says_what_its_intervals_are_of(tmp_path, own):
    arms = {name: {"task.test_of_seed": own} for name in EXPERIMENT.arms}
    build(tmp_path, replace(EXPERIMENT, arms=arms), simulate)
    write_report(tmp_path)
    said = "over seeds, each with a test of its own," if own else "over seeds, on these test data,"
    for name in ("report.md", "report.html"):
        assert said in (tmp_path / name).read_text()


def test_a_report_of_a_hundred_runs_is_quick(report):
    start = time.process_time()
    summary, _, _ = report(replace(EXPERIMENT, seeds=tuple(range(23))))
    assert len(summary.study.runs) == 100
    assert time.process_time() - start < 5


def test_no_sweep_directory(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="not a sweep directory"):
            write_report(path)
        assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path):
    build(tmp_path / "sweep", EXPERIMENT, simulate)
    (tmp_path / "sweep" / "cells.json").write_text("[{")
    with pytest.raises(UserError, match="cells.json cannot be read"):
        write_report(tmp_path / "sweep")


def test_an_outcome_no_run_has_is_named(report):
    with pytest.raises(UserError, match="'acuracy'.*Did you mean 'accuracy'"):
        report(replace(EXPERIMENT, outcome=Outcome("acuracy", higher_is_better=True), claims=()))


def test_command(complete, tmp_path):
    case = [f"--workdir={complete[0].study.workdir}", f"--out={tmp_path / 'there'}", "--latex"]
    (done,) = run_cases("research.report", [case])
    assert done.code == 0, done.err
    assert "supported" in done.out and str(tmp_path / "there" / "report.html") in done.out
    assert (tmp_path / "there" / "report.html").is_file()
    assert "report.tex" in done.out and (tmp_path / "there" / "report.tex").is_file()
    assert {path.suffix for path in (tmp_path / "there").glob("curves.*")} == {".png", ".pdf"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir is missing"),
        (["--workdir=/nonexistent"], "is not a sweep"),
        (["--wrkdir=x"], "workdir"),
        (["--workdir=x", "--formats=jpg"], "'jpg'"),
    ],
)
def test_command_errors_are_one_line(arguments, message):
    (done,) = run_cases("research.report", [arguments])
    assert done.code == 2
    assert message in done.err and done.err.count("\n") == 1
