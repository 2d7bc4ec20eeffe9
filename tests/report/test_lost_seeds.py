"""What a report makes of seeds that diverged or failed, and of what is no sample of seeds."""

from dataclasses import replace

from research.ablation.claims import Claim, Direction
from research.report.judging.measuring import measure
from tests.report.example import EXPERIMENT, simulate
from tests.report.synthetic_sweep import GAPS, diverged, failed


def test_failed_arm(report):
    def broken(arm, point, tuned, seed, generator):
        if arm == "dot":
            return failed("Traceback (most recent call last):\n  File\nValueError: width 7 <odd>\n")
        return simulate(arm, point, tuned, seed, generator)

    summary, out, page = report(simulate=broken)
    assert "ValueError: width 7 <odd>" in " ".join(page.text)
    assert "ValueError: width 7 &lt;odd>" in (out / "report.md").read_text()
    rows = [row for row in summary.rows if row.arm == "dot"]
    assert all(row.outcome.n == 0 and "8 seeds failed" in row.notes for row in rows)
    assert summary.progress["failed"] == 20


def test_a_diverged_seed_counts_as_the_worst_declared_value(report):
    def broken(arm, point, tuned, seed, generator):
        run = simulate(arm, point, tuned, seed, generator)
        return diverged(run) if (arm, seed) == ("dot", 1) else run

    summary, _, page = report(simulate=broken)
    sample = measure(summary.study).sample("dot", {"task.length": 20})
    assert sample == {seed: 0.0 if seed == 1 else 1.0 for seed in range(8)}
    row = next(r for r in summary.rows if r.arm == "dot" and r.point["task.length"] == 20)
    assert "1 seed diverged, counted as worst" in row.notes and row.solved[0] == 7
    assert "worst value that its metric has" in " ".join(page.text)
    by_gap = measure(summary.study, "accuracy_by_gap")
    assert by_gap.sample("dot", {"task.length": 20, "slice": GAPS[0]})[1] == 0.0


def test_without_a_worst_value_a_diverged_seed_leaves_no_mean(report):
    """A loss has no worst value, and a seed that diverged is not passed over."""

    def broken(arm, point, tuned, seed, generator):
        run = simulate(arm, point, tuned, seed, generator)
        return diverged(run) if (arm, seed) == ("dot", 1) else run

    claims = (
        Claim("The loss falls", test=Direction("dot", "none", metric="loss", better="lower")),
        Claim("It is solved more often", test=Direction("dot", "none", at={"task.length": 20})),
    )
    summary, _, _ = report(replace(EXPERIMENT, claims=claims), broken)
    loss, solved = summary.judgements
    assert loss.verdict == "cannot tell"
    assert "1 seed of dot diverged, and loss has no worst value" in loss.why
    assert solved.verdict == "supported" and solved.checks[0].quantity.estimate.k1 == 7


def test_failed_seeds_withhold_the_verdict(report):
    def broken(arm, point, tuned, seed, generator):
        run = simulate(arm, point, tuned, seed, generator)
        return failed("Traceback\nValueError") if (arm, seed) == ("dot", 1) else run

    summary, _, _ = report(simulate=broken)
    first = summary.judgements[0]
    assert first.verdict == "cannot tell"
    assert "1 of 8 seeds of dot failed with an exception" in first.why


def test_one_clock_compares_nothing(report):
    test = Direction("dot", "none", metric="timing/train_seconds")
    summary, _, _ = report(replace(EXPERIMENT, claims=(Claim("It is quicker", test=test),)))
    assert summary.judgements[0].verdict == "cannot tell"
    assert "One clock timed all seeds" in summary.judgements[0].why
