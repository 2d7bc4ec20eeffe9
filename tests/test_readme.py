"""Every command in the README runs, and its experiment is one."""

import re
import shlex
from pathlib import Path

from research.ablation.experiment import load_experiment
from research.ablation.sweep import prepare
from tests.commands import ROOT, run_cases

README = (ROOT / "README.md").read_text(encoding="utf-8")
# What the tests cannot run here: they install software, or they run these tests.
ELSEWHERE = ("make ", "cp ", ".venv/bin/pip ", ".venv/bin/python -m benchmarks.")
# Enough to see that a command works; the README's own numbers of steps would take minutes.
SHORT = {
    "research.train": [
        "--config.train.steps=2",
        "--config.train.eval_every=1",
        "--config.train.eval_batches=1",
        "--config.task.batch_size=2",
    ],
    "research.generate": ["--tokens=3"],
}


def commands() -> list[str]:
    """Returns the shell commands of the README, without comments and line breaks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip()]


def example(tmp_path: Path) -> Path:
    """Returns the README's experiment as a file, with the imports of the one it is copied from."""
    copied = (ROOT / "experiments" / "attention_type.py").read_text(encoding="utf-8")
    imports = "\n".join(line for line in copied.splitlines() if line.startswith("from "))
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    path = tmp_path / "mine.py"
    path.write_text(f"{imports}\n\n{code}", encoding="utf-8")
    return path


def test_the_example_is_an_experiment(tmp_path):
    path = example(tmp_path)
    prepare(str(path), tmp_path / "runs")
    assert len(load_experiment(path).arms) == 3


def test_every_file_that_is_linked_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_every_command_is_known_to_make_or_runs_below():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands():
        if command.startswith("make "):
            assert command.split()[1] in targets
        else:
            assert command.startswith((*ELSEWHERE, ".venv/bin/python -m research.")), command


def test_the_commands_run(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("ROMEO: a rose by any other name would smell as sweet.\n" * 400)
    mine = example(tmp_path)
    run = 0
    for command in commands():
        if command.startswith(ELSEWHERE):
            continue
        _, _, module, *arguments = shlex.split(command)
        arguments = [
            a.replace("runs/", f"{tmp_path}/runs/").replace("experiments/mine.py", str(mine))
            for a in arguments
        ]
        arguments += SHORT.get(module, [])
        if "--config=configs/text.py" in arguments:
            arguments.append(f"--config.task.path={text}")
        if module in ("research.sweep", "research.report") and "--dry_run" not in arguments:
            continue  # their runs take minutes; tests/ablation runs both on a smaller experiment
        (outcome,) = run_cases(module, [arguments])
        assert outcome.code == 0, f"{command}\n{outcome.err}"
        run += 1
    assert run >= 5
