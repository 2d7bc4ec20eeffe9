"""Reports that are made again from results.json, without the runs."""

import json
import subprocess
import sys

import pytest

from research.errors import UserError
from research.report.write import rewrite_report
from tests.report.example import EXPERIMENT, read_page


def test_experiment_survives_json(complete):
    summary, _, _ = complete
    assert summary.study.experiment.to_json() == json.loads(json.dumps(EXPERIMENT.to_json()))


def test_reading_results_needs_no_jax():
    names = "ablation.tuning report.__main__ report.judging.bootstrap report.write"
    code = "import sys\n" + "".join(f"import research.{n}\n" for n in names.split())
    code += "print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"jax", "jaxlib", "flax"} & set(json.loads(done.stdout.replace("'", '"')))


def test_a_report_is_made_again_from_its_results(complete, tmp_path):
    summary, out, _ = complete
    again = rewrite_report(out, tmp_path)
    for name in ("report.md", "results.csv", "results.json"):
        assert (tmp_path / name).read_text() == (out / name).read_text()
    assert [j.reason for j in again.judgements] == [j.reason for j in summary.judgements]
    assert {c.name for c in again.charts} == {c.name for c in summary.charts}
    read_page(tmp_path / "report.html")


def test_results_that_are_not_there_or_damaged(tmp_path):
    with pytest.raises(UserError, match="has no results.json"):
        rewrite_report(tmp_path)
    for content in ("{", "{}", '{"experiment": {}}'):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(UserError, match="cannot be read|holds no results"):
            rewrite_report(tmp_path)
