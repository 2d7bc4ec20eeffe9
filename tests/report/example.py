"""The example of an ablation that tests report on, and its page as a browser would read it."""

import re
import warnings
from html.parser import HTMLParser

from research.ablation.claims import Claim, Direction, Threshold, Trend
from research.ablation.costs import Cost, Costs, write_costs
from research.ablation.experiment import Experiment, Outcome
from research.report.write import write_report
from tests.report.synthetic_sweep import build, plausible

EXPERIMENT = Experiment(
    question="Does attention beat a fixed vector?",
    base="configs/recall.py",
    arms={"none": {"model.mixer": "none"}, "dot": {"model.mixer": "dot"}},
    axes={"task.length": (5, 20)},
    tune={"optimizer.learning_rate": (1e-3, 3e-3)},
    tune_seeds=(100,),
    seeds=tuple(range(8)),
    ranges={"accuracy": (0.0, 1.0)},
    outcome=Outcome("accuracy", solved=0.95, higher_is_better=True),
    claims=(
        Claim("Attention wins when it is long", "Paper, Fig. 2", {"none": 0.55, "dot": 1.0},
              Direction("dot", "none", 0.2, at={"task.length": 20})),
        Claim("The advantage reaches every gap",
              test=Threshold("dot", at_least=0.9, share=0.5, metric="accuracy_by_gap")),
        Claim("Attention learns sooner",
              test=Direction("dot", "none", metric="steps_to_threshold")),
        Claim("Slices fall", test=Trend("none", "slice", "decreasing", metric="accuracy_by_gap")),
    ),
)  # fmt: skip

COSTS = [
    Cost(arm, {"task.length": n}, 256, 2**20 * n, (1e-3 * n, 2e-3 * n, 4e-3 * n))
    for n in (5, 20)
    for arm in ("none", "dot")
]

FINAL = {("none", 5): 0.9, ("none", 20): 0.5, ("dot", 5): 1.0, ("dot", 20): 1.0}


def simulate(arm, point, tuned, seed, generator):
    final = FINAL[arm, point["task.length"]]
    return plausible(min(1.0, final + (0 if final == 1 else generator.normal(0, 0.01))), generator)


class Page(HTMLParser):
    """Checks that tags nest, and collects what a browser would load, show and identify."""

    VOID = {"meta", "br", "hr", "col", "input", "link", "img"}

    def __init__(self):
        super().__init__()
        self.open, self.errors, self.tags, self.urls, self.ids, self.text = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.urls += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append((tag, self.getpos()))

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.text.append(data)


def read_page(path):
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.errors == [] and page.open == []
    assert len(page.ids) == len(set(page.ids))
    outside = [url for url in page.urls if re.match(r"(?i)\s*(https?:|//|javascript:|data:)", url)]
    assert outside == []
    inside = [url[1:] for url in page.urls if url.startswith("#")]
    assert set(inside) <= set(page.ids)
    return page


def build_and_report(folder, experiment=EXPERIMENT, simulate=simulate, finished=1.0, costs=()):
    """Builds a sweep, writes its report without a warning, returns what was written."""
    workdir = build(folder / "sweep", experiment, simulate, finished)
    write_costs(Costs({}, costs), workdir)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = write_report(workdir, folder / "out")
    return summary, folder / "out", read_page(folder / "out" / "report.html")
