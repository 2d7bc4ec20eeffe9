"""--help of every command: its own flags, --config first, and the keys of a config."""

import ast
from dataclasses import fields

import pytest

from research.cloud.launch.request import Options
from research.configuration import flatten, load_config
from research.training.schema import resolve
from tests.commands import ROOT, run_alone, run_commands

COMMANDS = sorted(
    path.stem for path in (ROOT / "research").glob("*.py") if "\ndef main(" in path.read_text()
)
PROCESSES = ["coordinator", "num_processes", "process_id", "distributed"]
SPELLINGS = ("--help", "-h", "-?", "--helpshort", "--helpfull", "--help=true")


def own_flags(name):
    """The names of a command's flags in order, read off its source."""
    tree = ast.parse((ROOT / "research" / f"{name}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    names = ["config"] * ("define_config_flag" in called)
    names += PROCESSES * ("define_process_flags" in called)
    defined = [
        (node.lineno, node.args[0].value)
        for node in calls
        if isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE_")
    ]
    names += [flag for _, flag in sorted(defined)]
    return names + [f.name for f in fields(Options)] * ("define_options" in called)


@pytest.fixture(scope="module")
def helped():
    """{(command, what is asked): (exit code, what is printed)}."""
    cases = [(name, ["--help"]) for name in COMMANDS]
    cases += [("train", [spelling]) for spelling in SPELLINGS]
    cases += [("train", ["--wrkdir=x", "--help"])]
    for name in COMMANDS:
        if "config" in own_flags(name):
            cases += [(name, ["--config=configs/recall.py", "--help"])]
    cases += [("train", ["--config", "configs/tpu/lm_1b3.py", "-h"])]
    cases += [("train", ["--config=configs/recal.py", "--help"])]
    outcomes = run_commands([(f"research.{name}", arguments) for name, arguments in cases])
    asked = [(name, " ".join(arguments)) for name, arguments in cases]
    found = [(outcome.code, outcome.out + outcome.err) for outcome in outcomes]
    return dict(zip(asked, found, strict=True))


def shown_flags(text):
    lines = [line for line in text.splitlines() if line.startswith("  --")]
    return [line.strip().removeprefix("--").removeprefix("[no]") for line in lines]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_flags_of_the_command(helped, name):
    code, text = helped[name, "--help"]
    assert code == 0
    assert shown_flags(text) == own_flags(name)
    assert text.startswith(ast.get_docstring(ast.parse((ROOT / f"research/{name}.py").read_text())))
    if "config" in own_flags(name):
        assert "--config=configs/recall.py" in text
        assert "--config=FILE --help lists what it reads" in " ".join(text.split())


def test_any_way_of_asking_is_answered(helped):
    expected = helped["train", "--help"]
    for arguments in (*SPELLINGS, "--wrkdir=x --help"):
        assert helped["train", arguments] == expected


@pytest.mark.parametrize("name", [name for name in COMMANDS if "config" in own_flags(name)])
def test_keys_of_a_config_with_values_and_meanings(helped, name):
    code, text = helped[name, "--config=configs/recall.py --help"]
    assert code == 0
    lines = [line[2:] for line in text.splitlines()[1:-1] if line[2] != " "]
    shown = dict(line.split(" = ", 1) for line in lines)
    config = load_config("configs/recall.py")
    values = flatten(resolve(config))
    assert shown == {key: repr(value) for key, value in values.items()}
    said = " ".join(text.split())
    assert "model.width = 32 width of the residual stream, or of the recurrent state" in said
    # Another task means something else by it.
    assert "task.vocab_size = 64 number of tokens: half of them keys, half values;" in said
    last = text.splitlines()[-1]
    assert last.startswith("Not read, see docs/config.md for what reads them: decoding.beam, ")
    others = last.split(": ")[1].rstrip(".").split(", ")
    assert set(others) == set(flatten(config)) - set(values)


def test_a_config_of_a_config_of_a_config(helped):
    code, text = helped["train", "--config configs/tpu/lm_1b3.py -h"]
    assert code == 0
    assert "seed = 0 seed of the initial parameters, the order of the data and dropout" in " ".join(
        text.split()
    )


def test_a_mistake_in_the_config_is_one_line(helped):
    assert helped["train", "--config=configs/recal.py --help"] == (
        2,
        "error: there is no file 'configs/recal.py'. Did you mean 'recall.py'?\n",
    )


def test_the_command_as_users_start_it():
    outcome = run_alone("research.train", "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert shown_flags(outcome.out) == own_flags("train")
