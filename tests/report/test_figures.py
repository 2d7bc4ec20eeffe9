"""What the figures show, as seen in the drawings themselves."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from research.ablation.experiment import Experiment, Outcome
from research.drawing.chart import PALETTE, svg, write_chart
from research.report.arms import arm_colors, families
from research.report.facets import elide_middle, separate_heights
from research.report.figures import charts, curve_metric
from research.report.judging.evidence import load_study
from research.report.tables import main_table
from research.report.write import write_report
from tests.report.synthetic_sweep import build, plausible

FEW = Experiment(
    question="Which?",
    base="configs/recall.py",
    arms={"reference": {}, "worse": {"model.num_heads": 2}, "better": {"model.num_heads": 4}},
    axes={"task.length": (32, 64)},
    seeds=(0, 1, 2, 3),
    outcome=Outcome("accuracy", solved=0.8, higher_is_better=True),
)
REACHED = {"reference": 0.7, "worse": 0.4, "better": 0.9}
MANY = replace(
    FEW,
    arms={"reference": {}}
    | {f"heads {i}": {"model.num_heads": i} for i in range(10)}
    | {f"mask {i}": {"model.mask": f"m{i}"} for i in range(4)}
    | {"gated": {"model.output_gate": True}, "normed": {"model.norm": "layernorm"}},
    axes={},
)


def drawn(folder, experiment, accuracy):
    """Returns {name: chart} of a made-up sweep."""

    def simulate(arm, point, tuned, seed, generator):
        return plausible(accuracy(arm) + 0.01 * seed, generator)

    study = load_study(build(folder, experiment, simulate))
    return {chart.name: chart for chart in charts(study, main_table(study))}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("few"), FEW, REACHED.__getitem__)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("many"), MANY, lambda arm: 0.5)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_one_figure_for_each_question(few):
    assert list(few) == ["outcome", "outcome-by-task-length", "curves", "slices-by-gap", "steps"]
    # A panel to each of two lengths, and, along the axis, one of shares and one of seeds.
    assert [len(chart.figure.axes) for chart in few.values()] == [4, 2, 2, 2, 2]


def test_every_seed_is_inside_of_its_panel(few):
    for axes in few["outcome-by-task-length"].figure.axes:
        low, high = axes.get_xlim()
        assert low < 32 - 2 and 64 + 2 < high


def test_arms_are_sorted_and_what_was_solved_comes_first(few):
    seeds, differences, *_ = few["outcome"].figure.axes
    assert texts(seeds) == ["solved", "better", "4 of 4", "reference", "0 of 4", "worse", "0 of 4"]
    dots = [line for line in seeds.lines if len(line.get_xdata()) == 4]
    assert [sorted(line.get_xdata()) for line in dots] == [
        pytest.approx([REACHED[arm] + 0.01 * i for i in range(4)])
        for arm in ("better", "reference", "worse")
    ]
    assert "97.5 % intervals over seeds (95 % for 2 arms together)" in differences.get_xlabel()


def test_intervals_of_the_forest_are_those_of_the_table(tmp_path):
    experiment = replace(FEW, outcome=Outcome("accuracy", higher_is_better=True), axes={})

    def simulate(arm, point, tuned, seed, generator):
        return plausible(REACHED[arm] + 0.01 * seed, generator)

    study = load_study(build(tmp_path, experiment, simulate))
    rows = {row.arm: row for row in main_table(study)}
    (outcome, *_) = charts(study, list(rows.values()))
    _, differences = outcome.figure.axes
    intervals = [list(line.get_xdata()) for line in differences.lines if len(line.get_xdata()) == 2]
    assert [0.0, 0.0] in intervals  # the reference line; lines of 0 and 1 across the axes
    for arm in ("better", "worse"):
        assert [rows[arm].low, rows[arm].high] in intervals


def test_numbers_below_zero_have_a_minus_sign(few):
    numbers = re.findall(r">([-−]\d[\d.]*)</text>", svg(few["outcome"]))
    assert numbers and all(number.startswith("−") for number in numbers)


def test_many_arms_are_drawn_by_family(many):
    found = families(MANY)
    assert [family.title for family in found] == [
        "num_heads 1 of 2", "num_heads 2 of 2", "mask", "others",
    ]  # fmt: skip
    assert all(family.arms[0] == "reference" for family in found)
    others = [arm for family in found for arm in family.arms[1:]]
    assert sorted(others) == sorted(set(MANY.arms) - {"reference"})
    colors = arm_colors(MANY)
    for family in found:
        used = [colors[arm] for arm in family.arms]
        assert len(used) == len(set(used)) and max(used) < len(PALETTE)
    panels = many["curves"].figure.axes
    assert [sorted(texts(axes)) for axes in panels] == [sorted(f.arms) for f in found]
    assert not many["curves"].figure.texts[1:]  # a title, and no legend


def test_where_all_arms_stand_together_no_color_says_what_is_not_so(many):
    seeds, _ = many["outcome"].figure.axes
    colors = {line.get_color() for line in seeds.lines if line.get_marker() not in ("None", "|")}
    assert colors == {PALETTE[0], PALETTE[1]}


def test_names_at_lines_are_moved_apart_and_stay_in_order():
    heights = separate_heights([0.1, 0.11, 0.12, 0.9], 0.1)
    assert heights == sorted(heights) and 0 <= heights[0] and heights[-1] <= 1
    assert all(b - a > 0.0999 for a, b in zip(heights, heights[1:], strict=False))
    assert elide_middle("gated convolution of 4", 20) == "gated convolu…n of 4"


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_figures_as_files(few, tmp_path, kind):
    path = tmp_path / f"steps.{kind}"
    write_chart(few["steps"], path)
    content = path.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    if kind == "png":
        with Image.open(path) as image:
            assert image.width > 1000 and image.mode == "P"
    else:
        write_chart(few["steps"], tmp_path / f"again.{kind}")
        assert (tmp_path / f"again.{kind}").read_bytes() == content


@pytest.mark.parametrize(
    ("logged", "outcome", "drawn"),
    [
        (("loss", "accuracy", "bleu"), "bleu", "bleu"),
        (("loss", "accuracy"), "bleu", "accuracy"),
        (("loss", "accuracy", "error_rate"), "wer", "error_rate"),
        (("loss",), "bleu", "loss"),
        ((), "bleu", "bleu"),
    ],
)
def test_what_is_known_only_at_the_end_shows_the_curve_of_what_chose(logged, outcome, drawn):
    rows = [{"step": 1, "train/loss": 1.0}, {f"validation/{name}": 0.5 for name in logged}]
    study = SimpleNamespace(
        experiment=SimpleNamespace(outcome=SimpleNamespace(metric=outcome)),
        reported=[SimpleNamespace(curve=rows)],
    )
    assert curve_metric(study) == drawn


def test_what_runs_decoded_comes_with_the_report(tmp_path):
    experiment = Experiment(
        question="Which?",
        base="configs/recall.py",
        arms={"one": {}, "other": {"model.num_heads": 1}},
        seeds=(0,),
        outcome=Outcome("accuracy", higher_is_better=True),
    )
    build(tmp_path / "sweep", experiment, lambda *cell: plausible(0.9, cell[-1]))
    runs = [path.parent for path in (tmp_path / "sweep").glob("*/result.json")]
    for run in runs:
        (run / "test.hypotheses.txt").write_text(f"a häuschen\n{run.name}\n", encoding="utf-8")
        (run / "test.references.txt").write_text("not ours to give away\n")
    write_report(tmp_path / "sweep", tmp_path / "report")
    found = {path.name: path.read_text("utf-8") for path in (tmp_path / "report/outputs").iterdir()}
    assert found == {f"{run.name}.test.hypotheses.txt": f"a häuschen\n{run.name}\n" for run in runs}
    assert len(found) == 2
