"""Evaluates a trained language model on tasks of EleutherAI's lm-eval.

python -m research.lm_evaluation --workdir=runs/gpt2 --tasks=lambada_openai,wikitext --limit=100
python -m research.lm_evaluation --workdir=runs/gpt2 --tasks=mine --include_path=tasks

Needs the package: pip install "attest[lm-eval]". Tasks may be files of your own; those that the
package has download their data. Prints a line for each task and metric, and writes them to
WORKDIR/lm_evaluation.json.
"""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from absl import flags

from research.command_line import run
from research.errors import UserError, check_name
from research.messages import progress_of, tell
from research.runs.bucket import named, open_workdir

flags.DEFINE_string("workdir", None, "Directory of a run of a text task.", required=True)
flags.DEFINE_list("tasks", None, "Names of tasks.", required=True)
flags.DEFINE_string("include_path", "", "Directory with tasks of your own, as YAML files.")
flags.DEFINE_integer("num_fewshot", -1, "Examples in the context; -1: as the task says.")
flags.DEFINE_integer("limit", 0, "Documents of each task; 0: all.", lower_bound=0)
flags.DEFINE_integer("gen_tokens", 0, "Most tokens to write; 0: as the task says.", lower_bound=0)
flags.DEFINE_integer("window", 0, "Tokens of a rolling cache, for any length; 0: reads all.")
flags.DEFINE_integer("sinks", 0, "How many of the window are the first of the text.")
flags.DEFINE_string("out", "", "Directory of lm_evaluation.json. Default: WORKDIR.")


def main() -> None:
    """Prints and writes the results."""
    options = flags.FLAGS
    workdir = open_workdir(options.workdir)
    if options.include_path and not Path(options.include_path).is_dir():
        raise UserError(f"--include_path={options.include_path} is no directory.")
    if options.out and Path(options.out).exists() and not Path(options.out).is_dir():
        raise UserError(f"--out={options.out} is no directory.")
    from research.decoding.harness import adapter
    from research.inspect.token_probabilities import open_streaming

    opened, model = open_streaming(workdir, options.window, options.sinks)
    tell(f"best step {opened.best['step']:,}")
    found = evaluated(adapter(reader_of(opened, model, bool(options.window)), progress_of), options)
    rows = rows_of(found)
    print("task\tmetric\tvalue\tstderr")
    for task, metric, value, error in rows:
        print(f"{task}\t{metric}\t{value:.6g}\t{'' if error is None else f'{error:.3g}'}")
    write(opened, found, rows, options)


def evaluated(model: Any, options: flags.FlagValues) -> dict[str, Any]:
    """Returns the results of lm-eval. Raises UserError for a task that it does not know."""
    from lm_eval import simple_evaluate  # ty: ignore[import-not-found]  # optional
    from lm_eval.tasks import TaskManager  # ty: ignore[import-not-found]  # optional

    # What it prints is for people, and the results of this command are for programs.
    with redirect_stdout(sys.stderr):
        manager = TaskManager(include_path=options.include_path or None)
        for name in options.tasks:
            check_name("--tasks", name, manager.all_tasks)
        return simple_evaluate(
            model=model,
            tasks=options.tasks,
            num_fewshot=None if options.num_fewshot < 0 else options.num_fewshot,
            limit=options.limit or None,
            gen_kwargs={"max_gen_toks": options.gen_tokens} if options.gen_tokens else None,
            task_manager=manager,
            log_samples=False,
        )


def reader_of(opened: Any, model: Any, streams: bool) -> Any:
    """Returns the model of a run as one that takes and gives text.

    Before a text that nothing comes before stands the tokenizer's own first token, or else the
    token that the model's config.json has for it, or else the end of a line, after which texts of a
    model that was trained here begin.
    """
    from research.decoding.harness import Reader
    from research.pretrained.importing import IMPORTED
    from research.runs.store import read_json

    known = (read_json(opened.path / IMPORTED) or {}).get("config", {})
    begin, end = known.get("bos_token_id"), known.get("eos_token_id")
    ends = tuple(end) if isinstance(end, list) else () if end is None else (end,)
    first = [*opened.tokenizer.around[0]][:1] or [
        token for token in (begin, *ends) if token is not None
    ]
    prefix = int(first[0] if first else opened.tokenizer.encode("\n")[-1])
    return Reader(model, opened.params, opened.tokenizer, prefix, ends, streams)


def rows_of(found: dict[str, Any]) -> list[tuple[str, str, float, float | None]]:
    """Returns (task, metric, value, standard error) of all results; filters are named."""
    rows = []
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, _, kept = key.partition(",")
            if "," not in key or metric.endswith("_stderr"):
                continue
            error = metrics.get(f"{metric}_stderr,{kept}")
            error = error if isinstance(error, float) else None
            rows.append((task, metric if kept == "none" else f"{metric} ({kept})", value, error))
    return rows


def write(opened: Any, found: dict[str, Any], rows: list, options: flags.FlagValues) -> None:
    """Writes the results, with versions of the tasks, to lm_evaluation.json."""
    from importlib.metadata import version

    from research.configuration import to_plain
    from research.runs.store import write_json
    from research.training.records.environment import describe_environment

    content = {
        "lm_eval": version("lm_eval"),
        "results": [
            dict(zip(("task", "metric", "value", "stderr"), row, strict=True)) for row in rows
        ],
        "versions": found.get("versions", {}),
        "num_fewshot": found.get("n-shot", {}),
        "limit": options.limit,
        "gen_tokens": options.gen_tokens,
        "window": options.window,
        "sinks": options.sinks,
        "best_step": opened.best["step"],
        "config": to_plain(opened.config),
        "environment": describe_environment(),
    }
    path = (Path(options.out) if options.out else opened.path) / "lm_evaluation.json"
    write_json(path, content)
    tell(named(str(path)))


if __name__ == "__main__":
    run(main)
