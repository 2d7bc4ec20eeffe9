"""Paired resampling of made-up translations, and how it shows in a report."""

import time

import jiwer
import numpy as np
import pytest
import sacrebleu
from sacrebleu.significance import PairedTest

from research.ablation.experiment import Experiment, Outcome
from research.errors import UserError
from research.report.judging.bootstrap import bootstrap, compare_bleu, compare_wer
from research.report.judging.evidence import load_study
from research.report.write import rewrite_report, write_report
from research.runs import store
from research.tasks.text.translation_scores import signatures
from tests.report.example import read_page
from tests.report.synthetic_sweep import build, failed, plausible

EXPERIMENT = Experiment(
    question="Does attention translate better?",
    base="configs/recall.py",
    arms={"fixed": {"model.a": "fixed"}, "additive": {"model.a": "add"}, "dot": {"model.a": "dot"}},
    axes={"task.length": (20, 40)},
    seeds=(0, 1),
    outcome=Outcome("accuracy", higher_is_better=True),
)

WORDS = [f"word{i}" for i in range(300)]


def sentences(number, seed=0):
    generator = np.random.default_rng(seed)
    return [
        " ".join(generator.choice(WORDS, size=generator.integers(6, 14))) for _ in range(number)
    ]


def noisy(references, share, seed):
    """The references with a share of their words replaced."""
    generator = np.random.default_rng(seed)
    return [
        " ".join(generator.choice(WORDS) if generator.random() < share else word for word in words)
        for words in map(str.split, references)
    ]


REFERENCES = sentences(60)


def write_lines(folder, hypotheses, references=REFERENCES, split="test"):
    for what, lines in (("hypotheses", hypotheses), ("references", references)):
        store.write_text(folder / f"{split}.{what}.txt", "".join(f"{x}\n" for x in lines))


@pytest.fixture
def sweep(tmp_path):
    """A sweep whose runs keep translations: additive as good as fixed, dot much worse."""
    simulate = lambda arm, point, tuned, seed, generator: plausible(0.9, generator)  # noqa: E731
    workdir = build(tmp_path / "sweep", EXPERIMENT, simulate)
    share = {"fixed": 0.2, "additive": 0.2, "dot": 0.7}
    for i, run in enumerate(load_study(workdir).runs):
        write_lines(workdir / run.run, noisy(REFERENCES, share[run.arm], i))
    return workdir


def runs_of(workdir, **wanted):
    runs = load_study(workdir).runs
    return [r for r in runs if all(getattr(r, name) == value for name, value in wanted.items())]


def test_scores_are_those_of_sacrebleu():
    base, systems = noisy(REFERENCES, 0.2, 1), {"a": noisy(REFERENCES, 0.3, 2)}
    found, signature = compare_bleu(base, systems, REFERENCES)
    expected = [sacrebleu.corpus_bleu(x, [REFERENCES]).score for x in (base, systems["a"])]
    assert found["a"][:2] == pytest.approx(expected)
    assert f"version:{sacrebleu.__version__}" in signature and "ar:1000" in signature


def test_worse_is_significant_and_alike_is_not():
    base = noisy(REFERENCES, 0.2, 1)
    systems = {"worse": noisy(REFERENCES, 0.7, 2), "alike": noisy(REFERENCES, 0.2, 3)}
    found, _ = compare_bleu(base, systems, REFERENCES)
    assert found["worse"][2] < 0.01 < 0.1 < found["alike"][2]
    # The other way round the same differences are as significant.
    back, _ = compare_bleu(systems["worse"], {"base": base}, REFERENCES)
    assert back["base"] == pytest.approx((found["worse"][1], found["worse"][0], found["worse"][2]))


def test_p_values_are_those_of_sacrebleu():
    base, systems = noisy(REFERENCES, 0.3, 1), {"a": noisy(REFERENCES, 0.32, 2)}
    found, _ = compare_bleu(base, systems, REFERENCES, resamples=300)
    theirs = PairedTest(
        [("", base), *systems.items()], {"BLEU": sacrebleu.BLEU()}, [REFERENCES], "ar", 300
    )
    assert found["a"][2] == pytest.approx(theirs()[1]["BLEU"][1].p_value)


def test_a_single_better_sentence_is_no_evidence():
    """All other sentences are the same, so that every swap leaves the difference as large."""
    base = noisy(REFERENCES, 0.3, 1)
    found, _ = compare_bleu(base, {"better": [REFERENCES[0], *base[1:]]}, REFERENCES)
    assert found["better"][1] > found["better"][0]
    assert found["better"][2] == 1.0


def test_systems_that_are_alike_are_rejected_as_often_as_the_level_says():
    """Two systems that share their sentences at random: p-values up to 1, few below 5 %."""
    one, other = noisy(REFERENCES, 0.3, 1), noisy(REFERENCES, 0.3, 2)
    generator = np.random.default_rng(0)
    p = []
    for _ in range(60):
        swap = generator.random(len(one)) < 0.5
        pairs = [(b, a) if s else (a, b) for a, b, s in zip(one, other, swap, strict=True)]
        base, system = map(list, zip(*pairs, strict=True))
        found, _ = compare_bleu(base, {"other": system}, REFERENCES, resamples=100)
        p.append(found["other"][2])
    # Binomial(60, 0.05) exceeds 9 with probability 6e-4, and (60, 0.11) half of the time 6.
    assert sum(x <= 0.05 for x in p) <= 9
    assert max(p) > 0.8 and 0.35 < np.mean(p) < 0.65


def test_the_same_output_is_no_difference():
    base = noisy(REFERENCES, 0.2, 1)
    found, _ = compare_bleu(base, {"same": base, "spaced": [f" {x}  " for x in base]}, REFERENCES)
    assert found["same"][2] == found["spaced"][2] == 1.0


def test_every_run_is_compared_with_the_reference_run_of_its_seed_and_point(sweep):
    found = bootstrap(load_study(sweep))
    where = [(pair.arm, pair.point["task.length"], pair.seed) for pair in found.pairs]
    expected = [(a, n, s) for n in (20, 40) for a in ("additive", "dot") for s in (0, 1)]
    assert where == expected
    for pair in found.pairs:
        runs = {r.arm: r.run for r in runs_of(sweep, point=pair.point, seed=pair.seed)}
        for arm, score in (("fixed", pair.base), (pair.arm, pair.value)):
            text = (sweep / runs[arm] / "test.hypotheses.txt").read_text()
            whole = sacrebleu.corpus_bleu(text.splitlines(), [REFERENCES])
            assert score == pytest.approx(whole.score)
        assert (pair.p < 0.05) == (pair.arm == "dot")
        assert pair.sentences == 60 and pair.note == ""


def test_the_report_shows_it(sweep, tmp_path):
    write_report(sweep, tmp_path / "out")
    found = bootstrap(load_study(sweep))
    markdown = (tmp_path / "out" / "report.md").read_text()
    section = markdown.split("## Paired resampling\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 8 and all(f"{pair.value:.3f}" in section for pair in found.pairs)
    assert "version:" in section
    page = read_page(tmp_path / "out" / "report.html")
    assert "bootstrap" in {a["id"] for tag, a in page.tags if tag == "section"}
    assert f"{found.pairs[0].value:.3f}" in " ".join(page.text)


def sign(sweep, runs, tokenizer):
    """Gives runs the signature of a BLEU."""
    for run in runs:
        result = store.read_json(sweep / run.run / store.RESULT)
        result["signatures"] = signatures(tokenizer)
        result["best"]["test"]["bleu"] = 50.0
        store.write_json(sweep / run.run / store.RESULT, result)


def test_bleu_is_by_what_the_runs_took_for_words_and_the_report_says_it(sweep, tmp_path):
    chinese = ["我喜欢这只黑色的小猫。", "今天天气很好，我们去公园。"] * 10
    for run in runs_of(sweep):
        write_lines(sweep / run.run, [x.replace("小", "大") for x in chinese], chinese)
    assert bootstrap(load_study(sweep)).pairs[0].base < 70  # whole sentences, by 13a
    sign(sweep, runs_of(sweep), "zh")
    found = bootstrap(load_study(sweep))
    assert 70 < found.pairs[0].base < 99 and "tok:zh" in found.signature
    write_report(sweep, tmp_path)
    markdown = (tmp_path / "report.md").read_text().replace("\\", "")
    assert f"Scores by sacrebleu: bleu: {signatures('zh')['bleu']}; chrf: nrefs:1" in markdown
    assert signatures("zh")["bleu"] in " ".join(read_page(tmp_path / "report.html").text)
    assert "different tokenizers" not in markdown


def test_bleu_by_different_tokenizers_is_not_compared(sweep, tmp_path):
    sign(sweep, runs_of(sweep), "13a")
    sign(sweep, runs_of(sweep, arm="dot"), "char")
    pairs = bootstrap(load_study(sweep)).pairs
    assert {p.arm: p.note for p in pairs} == {
        "additive": "",
        "dot": "BLEU by char, that of fixed by 13a",
    }
    write_report(sweep, tmp_path)
    warning = "BLEU of the runs is by different tokenizers (13a, char), so that it cannot be"
    assert warning in (tmp_path / "report.md").read_text()


def test_a_sweep_that_keeps_no_sentences_has_no_such_section(sweep):
    for path in sweep.glob("*/test.*.txt"):
        path.unlink()
    assert bootstrap(load_study(sweep)) is None
    write_report(sweep)
    assert "bootstrap" not in (sweep / "report.md").read_text().lower()
    assert 'id="bootstrap"' not in (sweep / "report.html").read_text()


def test_missing_files_are_said(sweep, tmp_path):
    (base,) = runs_of(sweep, arm="fixed", seed=1, point={"task.length": 20})
    (arm,) = runs_of(sweep, arm="dot", seed=0, point={"task.length": 40})
    (sweep / base.run / "test.hypotheses.txt").unlink()
    (sweep / arm.run / "test.references.txt").unlink()
    store.write_json(sweep / arm.run / store.RESULT, failed("RuntimeError: no memory")["result"])
    pairs = bootstrap(load_study(sweep)).pairs
    notes = {(p.arm, p.point["task.length"], p.seed): p.note for p in pairs if p.note}
    assert notes == {
        ("additive", 20, 1): "fixed: no test.hypotheses.txt (completed)",
        ("dot", 20, 1): "fixed: no test.hypotheses.txt (completed)",
        ("dot", 40, 0): "no test.references.txt (failed)",
    }
    assert all(np.isnan(p.p) == bool(p.note) == (p.sentences == 0) for p in pairs)
    write_report(sweep, tmp_path / "out")
    assert "no test.references.txt (failed)" in (tmp_path / "out" / "report.html").read_text()


def test_a_report_without_some_outputs_is_made_again_from_its_results(sweep, tmp_path):
    (sweep / runs_of(sweep, arm="dot")[0].run / "test.hypotheses.txt").unlink()
    write_report(sweep, tmp_path / "first")
    rewrite_report(tmp_path / "first", tmp_path / "again")
    first, again = ((tmp_path / d / "report.md").read_text() for d in ("first", "again"))
    assert first == again and "no test.hypotheses.txt" in again


def test_files_that_do_not_belong_together_are_said(sweep):
    first, second = runs_of(sweep, arm="additive", point={"task.length": 20})
    write_lines(sweep / first.run, REFERENCES[:-1])
    write_lines(sweep / second.run, sentences(60, seed=9), sentences(60, seed=9))
    notes = [p.note for p in bootstrap(load_study(sweep)).pairs if p.note]
    assert notes == [
        "59 hypotheses, 60 references",
        "other references than those of fixed",
    ]


def test_files_of_another_split_are_not_read(sweep):
    for path in sweep.glob("*/test.*.txt"):
        path.rename(path.with_name(path.name.replace("test", "validation")))
    assert bootstrap(load_study(sweep)) is None


def test_a_sentence_may_hold_any_character_but_a_line_feed(sweep):
    strange = [f"{x} \u2028 \x0b \x85 \r y" for x in REFERENCES]
    for run in runs_of(sweep, seed=0, point={"task.length": 20}):
        write_lines(sweep / run.run, strange, strange)
    pair = bootstrap(load_study(sweep)).pairs[0]
    assert (pair.sentences, pair.p, pair.note) == (60, 1.0, "") and pair.value > 99


def test_a_file_that_is_no_text_is_one_line(sweep):
    path = sweep / runs_of(sweep, arm="dot")[0].run / "test.hypotheses.txt"
    path.write_bytes(b"fine\n\xff\n")
    with pytest.raises(UserError, match=r"test\.hypotheses\.txt cannot be read") as error:
        bootstrap(load_study(sweep))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_three_arms_of_a_thousand_sentences_take_seconds():
    references = sentences(1000)
    systems = {name: noisy(references, 0.3, i) for i, name in enumerate("ab")}
    start = time.perf_counter()
    compare_bleu(noisy(references, 0.3, 9), systems, references)
    assert time.perf_counter() - start < 10


def test_word_error_rates_are_those_of_jiwer_and_their_difference_is_resampled():
    rng = np.random.default_rng(0)
    words = ("one", "two", "three", "four")
    references = [" ".join(rng.choice(words, size=n)) for n in rng.integers(1, 6, 80)]

    def worse(text, rate):
        kept = [w if rng.random() > rate else "five" for w in text.split()]
        return " ".join(kept[: max(0, len(kept) - (rng.random() < rate))])

    base = [worse(text, 0.05) for text in references]
    systems = {"same": base, "worse": [worse(text, 0.5) for text in references]}
    found, how = compare_wer(base, systems, references)
    assert found["same"][2] == 1.0 and found["worse"][2] < 0.01 and "jiwer" in how
    for name, texts in systems.items():
        assert found[name][0] == pytest.approx(jiwer.wer(references, base))
        assert found[name][1] == pytest.approx(jiwer.wer(references, texts))


def test_no_word_where_none_was_said_is_an_insertion():
    found, _ = compare_wer(["", "one"], {"a": ["one two", "one"]}, ["", "one"])
    assert found["a"][:2] == (0.0, 2.0)
