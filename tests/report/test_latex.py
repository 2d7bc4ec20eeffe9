"""report.tex: what LaTeX would stumble over, whatever the names are; compiled where it can be."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from research.ablation.claims import Claim, Direction
from research.ablation.experiment import Experiment, Outcome
from research.report.judging.evidence import load_study
from research.report.latex import LONG, SPECIAL, escape, latex
from research.report.methods import methods
from research.report.summary import summarize
from tests.report.synthetic_sweep import build, plausible

HOSTILE = '\\input{x} 100 % & #1 $a_b^c$ ~ {} <|> "q" [*]'
EXPERIMENT = Experiment(
    question=f"Which {HOSTILE}?",
    base="configs/recall.py",
    arms={"plain": {"model.mixer": "a"}, f"[{HOSTILE}": {"model.mixer": "b_c"}},
    axes={"task.length": (5, 20)},
    tune={"optimizer.learning_rate": (1e-3, 3e-3)},
    tune_seeds=(100,),
    seeds=(0, 1, 2, 3),
    outcome=Outcome("accuracy", higher_is_better=True),
    claims=(Claim(HOSTILE, HOSTILE, test=Direction("plain", f"[{HOSTILE}")),),
)
DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}\usepackage{booktabs}\usepackage{longtable}
\begin{document}
\input{report.tex}
\end{document}
"""


def simulate(arm, point, tuned, seed, generator):
    run = plausible(0.5 + generator.normal(0, 0.01), generator)
    run["result"]["budget"]["parameters"] = 126_000 if arm == "plain" else 160_000
    return run


def summary_of(folder, experiment):
    return summarize(load_study(build(folder, experiment, simulate)))


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    return summary_of(tmp_path_factory.mktemp("sweep"), EXPERIMENT)


@pytest.fixture(scope="module")
def text(summary):
    return latex(summary)


def without_comments(text):
    return re.sub(r"^%.*\n", "", text, flags=re.MULTILINE)


def bare(text):
    """Returns the text without escapes and formulas: what is left has its meaning in LaTeX."""
    text = re.sub(r"\\[{}$&#_%\\]", "", without_comments(text))
    return re.sub(r"\$[^$\n]*\$", "", text)


def test_nothing_special_is_left_unescaped(text):
    assert not re.findall(r"[$#_%^~<>|\"]", bare(text))
    assert text.isascii()


def test_braces_and_environments_are_balanced(text):
    depth = 0
    for brace in re.findall("[{}]", bare(text)):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack


def test_every_row_has_the_cells_of_its_head(text):
    tables = re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL)
    assert len(tables) == 4
    for table in tables:
        rows = [row for row in table.splitlines() if row.endswith(r"\\")]
        cells = {len(re.findall(r"(?<!\\)&", row)) for row in rows}
        assert len(rows) >= 2 and len(cells) == 1
    assert r"160,000 $\times$1.27 $^{\ast}$" in text


def test_every_escape_reads_as_its_character():
    assert escape("50 % of\n#1_a") == r"50 \% of \#1\_a"
    assert all(escape(character) == written for character, written in SPECIAL.items())


def test_many_rows_break_over_pages(tmp_path):
    arms = {f"arm {i}": {"model.num_heads": i} for i in range(LONG + 1)}
    text = latex(summary_of(tmp_path, replace(EXPERIMENT, arms=arms, tune={}, claims=(), axes={})))
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") == 2


def test_methods_are_those_of_the_experiment(summary):
    text = methods(summary.study)
    for part in (
        "We compare 2 arms",
        "2 points: length in 5, 20",
        "learning rate in 0.001, 0.003",
        "1 tuning seed",
        "4 seeds of every arm.",  # chosen, not drawn
        "The outcome is accuracy on test",
        "Welch's t-test",
        "1 device (x86 with 2 cores)",
        "jax 0.10.2, flax 0.12.8, commit 0123456789ab",
    ):
        assert part in text, part
    # There was one comparison, and what the optimizer was nobody kept.
    assert "Holm-corrected" not in text and "optimizer" not in text


def test_methods_say_from_what_the_runs_start(tmp_path):
    common = {"train.init_from": "runs/pretrained/seed-{replicate}"}
    study = summary_of(tmp_path, replace(EXPERIMENT, common=common)).study
    assert "Every run starts from the parameters of runs/pretrained/seed-" in methods(study)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_it_compiles(text, tmp_path):
    (tmp_path / "report.tex").write_text(text)
    (tmp_path / "paper.tex").write_text(DOCUMENT)
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "paper.tex"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]
