"""Runs or loads an ablation from Python and shows its results in a notebook.

results = run(Experiment(...), "runs/mine")    # or load("runs/mine")
results                                        # in a notebook: the takeaway and the table
results.verdicts                               # {claim: verdict}
results.dataframe()                            # a row per run
results.figure("curves")
"""

import base64
import importlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from research.ablation.experiment import Experiment
from research.ablation.measure import point_key
from research.drawing.chart import Chart, figure_bytes
from research.drawing.templates import fill
from research.errors import UserError, check_name
from research.report import panels
from research.report.cards import cards
from research.report.columns import main_columns, progress_text
from research.report.judging.evidence import load_study
from research.report.judging.study import Study
from research.report.results import RESULTS, read_results
from research.report.run_rows import run_rows
from research.report.summary import Summary, summarize
from research.runs.bucket import local_workdir, open_workdir

TEMPLATE = Path(__file__).parent / "notebook.html"


def run(
    experiment: Experiment | str | Path,
    workdir: str | Path,
    retry_failed: bool = False,
    max_members: int = 8,
) -> "Results":
    """Trains the unfinished runs of an experiment in this process, and returns its results.

    Finished runs are not trained again, and the seeds of the first call are kept: the sweep is the
    same as that of `python -m research.sweep`.

    Args:
      experiment: the experiment, or its file. Without a file, it is named after `workdir`.
      workdir: directory of the runs.
      retry_failed: whether to train failed runs again.
      max_members: maximum number of runs that are trained as one program.

    Raises:
      UserError: an arm is invalid, or the directory holds another experiment.
      Preempted: interrupted; running training is saved, and the same call resumes it.
    """
    from research.ablation.loading import InMemoryExperiment
    from research.ablation.populations import Shard
    from research.ablation.sweep import run_sweep
    from research.training.records.environment import enable_compilation_cache

    workdir = local_workdir(str(workdir), "run")
    enable_compilation_cache()
    written = isinstance(experiment, Experiment)
    source = InMemoryExperiment(experiment, workdir.resolve().name) if written else str(experiment)
    run_sweep(source, workdir, Shard(), retry_failed, max_members)
    return load(workdir)


def load(folder: str | Path) -> "Results":
    """Loads the results from a sweep directory, finished or not, or from a report's directory.

    Raises UserError if the folder is neither.
    """
    folder = open_workdir(str(folder))
    if (folder / "experiment.json").exists():
        return Results(load_study(folder))
    if (folder / RESULTS).exists():
        return Results(read_results(folder))
    raise UserError(
        f"{str(folder)!r} has no experiment.json, as a sweep has, and no {RESULTS}, as a report."
    )


@dataclass(frozen=True)
class Results:
    """Results of a sweep; a notebook shows the takeaway, the verdicts, the table and the seeds.

    Attributes:
      study: the experiment and its runs.
    """

    study: Study

    @cached_property
    def summary(self) -> Summary:
        """The content of the report."""
        return summarize(self.study)

    @property
    def takeaway(self) -> str:
        """The main finding, in one sentence."""
        return self.summary.takeaway

    @property
    def verdicts(self) -> dict[str, str]:
        """{text of a claim: "supported", "refuted", "open", "cannot tell" or "not tested"}."""
        return {j.claim.text: j.verdict for j in self.summary.judgements}

    @property
    def reasons(self) -> dict[str, str]:
        """{text of a claim: what was measured, what was tested, and why it is not stronger}."""
        return {j.claim.text: j.reason for j in self.summary.judgements}

    def rows(self) -> list[dict[str, Any]]:
        """Returns one dictionary per run; see `research.report.run_rows` for its keys."""
        return run_rows(self.study)

    def dataframe(self) -> Any:
        """Returns the rows as a pandas DataFrame. Raises UserError without pandas."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise UserError(
                "dataframe() needs pandas, which is not installed: `pip install pandas`. rows() "
                "has the same as dictionaries."
            ) from None
        return pandas.DataFrame(self.rows())

    @property
    def figures(self) -> list[str]:
        """Names of the available figures."""
        return [chart.name for chart in self.summary.charts]

    def figure(self, name: str) -> "Picture":
        """Returns a figure by its name. Raises UserError if there is no such figure."""
        check_name("figure", name, self.figures)
        return Picture(self._chart(name).figure)

    def run_folder(self, arm: str, seed: int, **point: Any) -> Path:
        """Returns the directory of a reported run, for `research.training.runs.open_run`.

        Args:
          arm: arm of the run.
          seed: seed of the run.
          **point: axis point, with two underscores for each dot: task__length=64.

        Raises UserError if there is no such run.
        """
        check_name("arm", arm, self.study.experiment.arms)
        wanted = point_key({key.replace("__", "."): value for key, value in point.items()})
        for found in self.study.reported:
            if found.key == (arm, wanted) and found.seed == seed:
                return self.study.workdir / found.run
        seeds = sorted({r.seed for r in self.study.reported if r.key == (arm, wanted)})
        raise UserError(f"arm {arm!r} has no seed={seed} at {point}; its seeds: {seeds}.")

    def _chart(self, name: str) -> Chart:
        return next(chart for chart in self.summary.charts if chart.name == name)

    def _repr_html_(self) -> str:
        summary = self.summary
        columns = [c for c in main_columns(self.study) if c.title != "rise time"]
        shown = "outcome" in self.figures
        values = {
            "question": self.study.experiment.question,
            "takeaway": summary.takeaway,
            "progress": progress_text(summary.progress),
            "cards": cards(summary),
            "table": panels.table(summary, columns, summary.rows, "Outcome of each arm"),
            "picture": Markup(base64.b64encode(self.figure("outcome").png).decode())
            if shown
            else "",
        }
        return fill(TEMPLATE, values)

    def __repr__(self) -> str:
        found = "; ".join(f"{verdict}: {text}" for text, verdict in self.verdicts.items())
        return f"Results({self.takeaway}{' ' + found if found else ''})"


@dataclass(frozen=True)
class Picture:
    """A figure that a notebook can display, for example from `research.inspect.picture`."""

    figure: Figure

    @cached_property
    def png(self) -> bytes:
        """The figure as a PNG file."""
        return figure_bytes(self.figure)

    def _repr_png_(self) -> bytes:
        return self.png

    def save(self, path: str | Path) -> None:
        """Writes the figure to a file that ends in .png, .svg or .pdf."""
        path = Path(path)
        check_name("the file's ending", path.suffix.removeprefix("."), ("png", "svg", "pdf"))
        path.write_bytes(figure_bytes(self.figure, path.suffix.removeprefix(".")))
