"""The outcome against its cost: which arms stand on the frontier, and that the chart shows them."""

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from research.ablation.experiment import Experiment, Outcome
from research.ablation.loading import load_experiment
from research.drawing.chart import svg
from research.errors import UserError
from research.report.frontier import FrontierPoint, best_for_cost, format_cost, frontier_chart
from research.report.judging.evidence import load_study
from tests.report.synthetic_sweep import build, plausible

ARMS = {"all keys": (65536, 1.0), "window": (4096, 0.2), "state": (1024, 0.3), "big": (9000, 0.25)}


def spots():
    return [FrontierPoint(i, a, c, m, (m,)) for i, (a, (c, m)) in enumerate(ARMS.items())]


def test_the_frontier_is_what_nothing_cheaper_beats():
    assert [s.arm for s in best_for_cost(spots(), True)] == ["state", "all keys"]
    # Where less is better, the dear ones have to be the lower ones.
    assert [s.arm for s in best_for_cost(spots(), False)] == ["state", "window"]


@pytest.mark.parametrize("axes", [{}, {"task.length": (32, 64)}])
def test_a_panel_per_point_with_a_mark_per_arm(tmp_path, axes):
    experiment = Experiment(
        question="What does recall cost?",
        base="configs/recall.py",
        arms={arm: {} for arm in ARMS},
        axes=axes,
        outcome=Outcome("accuracy", higher_is_better=True),
        seeds=(0, 1, 2),
        against="state_bytes",
    )

    def simulate(arm, point, tuned, seed, generator):
        cost, accuracy = ARMS[arm]
        run = plausible(accuracy - 0.01 * seed, generator)
        run["result"]["budget"]["state_bytes"] = cost * point.get("task.length", 32) // 32
        return run

    (chart,) = frontier_chart(load_study(build(tmp_path, experiment, simulate)))
    assert len(chart.figure.axes) == (2 if axes else 1)
    text = svg(chart)
    assert "against bytes of decoding state" in text
    for index, arm in enumerate(ARMS):
        assert f'data-arm="{index}"' in text
        assert text.count(f">{arm}</text>") == len(chart.figure.axes)


def test_names_do_not_collide(tmp_path):
    """Forty arms in two places: the names that are written lie apart, the frontier's among them."""
    arms = {f"arm number {i}": {"model.num_heads": i} for i in range(40)}
    experiment = Experiment(
        question="?",
        base="configs/recall.py",
        arms=arms,
        outcome=Outcome("accuracy", higher_is_better=True),
        seeds=(0, 1),
        against="state_bytes",
    )

    def simulate(arm, point, tuned, seed, generator):
        number = int(arm.split()[-1])
        run = plausible(0.3 + 0.01 * (number % 20), generator)
        run["result"]["budget"]["state_bytes"] = 1024 if number < 20 else 4096
        return run

    (chart,) = frontier_chart(load_study(build(tmp_path, experiment, simulate)))
    renderer = FigureCanvasAgg(chart.figure).get_renderer()
    texts = [t for t in chart.figure.axes[0].texts if t.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert 5 <= len(texts) <= 40
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert "arm number 19" in {text.get_text() for text in texts}


def test_without_a_column_there_is_no_chart(tmp_path):
    experiment = Experiment("?", "b", {"a": {}}, Outcome("accuracy", higher_is_better=True), (0,))
    simulate = lambda arm, point, tuned, seed, g: plausible(0.5, g)  # noqa: E731
    assert not list(frontier_chart(load_study(build(tmp_path, experiment, simulate))))


def test_an_unknown_column_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from research.ablation.experiment import Experiment, Outcome\n"
        "experiment = Experiment('?', 'configs/recall.py', {'a': {}}, Outcome('accuracy'), (0,),"
        " against='state_byte')\n"
    )
    with pytest.raises(UserError, match="against='state_byte' is unknown. Did you mean 'state_b"):
        load_experiment(path)


def test_amounts_are_short():
    assert [format_cost(v, "state_bytes") for v in (256, 4096, 3 << 19)] == [
        "256 B",
        "4 KiB",
        "1.5 MiB",
    ]
    assert [format_cost(v, "parameters") for v in (256, 28832, 5e6)] == ["256", "28.8k", "5M"]
