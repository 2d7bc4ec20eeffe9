"""What a user sees of a mistake: one line that names it and what is right, and exit code 2."""

import re

import pytest

from research.configuration import to_plain
from research.runs.store import write_json
from tests import small
from tests.commands import run_alone, run_cases

CONFIG = "--config=configs/base.py"
TEXT = "--config=configs/text.py"

PAIRS = ("--config=configs/translation.py", "--config.task.path={tmp}/{split}.{language}")

# {what: (arguments, parts of the message)}; {tmp} is a directory with the files made below.
TRAIN = {
    "no config": (["{workdir}"], ["--config is missing", "--config=configs/base.py"]),
    "empty config": (["--config=", "{workdir}"], ["--config is missing"]),
    "override without config": (["{workdir}", "--config.seed=1"], ["--config is missing"]),
    "no workdir": ([CONFIG], ["--workdir is missing"]),
    "empty workdir": ([CONFIG, "--workdir="], ["--workdir is empty", "--workdir=runs/NAME"]),
    "workdir below a file": ([CONFIG, "--workdir={tmp}/short.txt/x"], ["{tmp}/short.txt"]),
    "stray argument": ([CONFIG, "{workdir}", "stray"], ["'stray'", "--name=value"]),
    "unknown flag": ([CONFIG, "{workdir}", "--wrkdir=x"], ["'wrkdir'", "workdir"]),
    "missing config": (
        ["--config=configs/bse.py", "{workdir}"],
        ["'configs/bse.py'", "Did you mean 'base.py'"],
    ),
    "directory as config": (["--config=configs", "{workdir}"], ["'configs'"]),
    "not a config": (["--config={tmp}/other.py", "{workdir}"], ["{tmp}/other.py", "get_config()"]),
    "broken config": (["--config={tmp}/broken.py", "{workdir}"], ["{tmp}/broken.py, line 1"]),
    "raising config": (
        ["--config={tmp}/raises.py", "{workdir}"],
        ["{tmp}/raises.py, line 2", "RuntimeError: boom"],
    ),
    "mistyped key": (
        [CONFIG, "{workdir}", "--config.model.widht=8"],
        ["'model.widht'", "Did you mean 'model.width'?"],
    ),
    "mistyped key, separate words": (
        ["--config", "configs/base.py", "{workdir}", "--config.model.widht", "8"],
        ["'model.widht'", "Did you mean 'model.width'?"],
    ),
    "mistyped group": (
        [CONFIG, "{workdir}", "--config.modell.width=8"],
        ["'modell.width'", "Did you mean 'model.width'?"],
    ),
    "word for int": (
        [CONFIG, "{workdir}", "--config.model.width=abc"],
        ["'model.width' takes int, not 'abc'"],
    ),
    "float for int": (
        [CONFIG, "{workdir}", "--config.model.width=3.5"],
        ["'model.width' takes int, not '3.5'"],
    ),
    "word for bool": (
        [CONFIG, "{workdir}", "--config.model.remat=maybe"],
        ["'model.remat' takes true or false, not 'maybe'"],
    ),
    "word in tuple": (
        [CONFIG, "{workdir}", "--config.task.num_pairs=(1,'a')"],
        ["'task.num_pairs' takes a tuple of int"],
    ),
    "nan": (
        [CONFIG, "{workdir}", "--config.optimizer.learning_rate=nan"],
        ["'optimizer.learning_rate' takes a finite number, not nan"],
    ),
    "task": (
        [CONFIG, "{workdir}", "--config.task.name=recal"],
        ["task.name='recal'", "'recall'", "text"],
    ),
    "mixer": ([CONFIG, "{workdir}", "--config.model.mixer=linar"], ["model.mixer", "'linear'"]),
    "score": (
        [CONFIG, "{workdir}", "--config.model.score=scaled_dt"],
        ["model.score", "'scaled_dot'"],
    ),
    "mask": ([CONFIG, "{workdir}", "--config.model.mask=causl"], ["model.mask", "'causal'"]),
    "position": (
        [CONFIG, "{workdir}", "--config.model.position=rpe"],
        ["model.position", "'rope'"],
    ),
    "schedule": (
        [CONFIG, "{workdir}", "--config.optimizer.schedule=cosin"],
        ["optimizer.schedule='cosin'", "'cosine'"],
    ),
    "heads": (
        [CONFIG, "{workdir}", "--config.model.num_heads=5"],
        ["model.num_heads = 5", "64", "divi"],
    ),
    "too many pairs": (
        [CONFIG, "{workdir}", "--config.task.num_pairs=(2,32)"],
        ["task.length=64", "32 pairs", "128"],
    ),
    "unset number": (
        ["--config=configs/rule.py", "{workdir}", "--config.task.min_length=x"],
        ["'task.min_length' takes int, not 'x'"],
    ),
    "unset numbers": (
        ["--config=configs/speech.py", "{workdir}", "--config.task.test_lengths=(1, 'x')"],
        ["task.test_lengths", "int"],
    ),
    "unset where another task reads it": (
        [CONFIG, "{workdir}", "--config.task.kind=pair"],
        ["task.kind='pair': task.name='recall' does not read it, rule, transduction do"],
    ),
    "steps": ([CONFIG, "{workdir}", "--config.train.steps=0"], ["train.steps=0", "at least 1"]),
    "members": ([CONFIG, "{workdir}", "--config.members=0"], ["members=0", "at least 1"]),
    "seed": ([CONFIG, "{workdir}", "--config.seed=-1"], ["seed=-1", "at least 0"]),
    "last seed": (
        [CONFIG, "{workdir}", "--config.seed=4294967295", "--config.members=2"],
        ["seed=4294967295", "members=2"],
    ),
    "accumulate": (
        [CONFIG, "{workdir}", "--config.optimizer.accumulate=5"],
        ["optimizer.accumulate=5", "task.batch_size=32"],
    ),
    "unknown corpus": (
        [TEXT, "{workdir}", "--config.task.path=tinyshakspeare"],
        ["task.path='tinyshakspeare'", "Did you mean 'tinyshakespeare'?"],
    ),
    "not UTF-8": (
        [TEXT, "{workdir}", "--config.task.path={tmp}/latin.txt"],
        ["{tmp}/latin.txt is not UTF-8", "position 3"],
    ),
    "short text": (
        [TEXT, "{workdir}", "--config.task.path={tmp}/short.txt"],
        ["task.length=64", "{tmp}/short.txt", "22 tokens"],
    ),
    "tokenizer": (
        [TEXT, "{workdir}", "--config.task.path={tmp}/long.txt", "--config.task.tokenizer=word"],
        ["task.tokenizer='word'", "bpe, char"],
    ),
    "targets in sight": (
        [TEXT, "{workdir}", "--config.task.path={tmp}/long.txt", "--config.model.mask=full"],
        ["model.mask='full'", "'text'", "'causal'"],
    ),
    "pairs for a language model": (
        ["--config=configs/transduction.py", "{workdir}", "--config.model.name=decoder"],
        ["model.name='decoder' cannot learn", "'transduction'", "encoder_decoder, recurrent can"],
    ),
    "text for a model of pairs": (
        [TEXT, "{workdir}", "--config.task.path={tmp}/long.txt", "--config.model.name=recurrent"],
        ["model.name='recurrent' cannot learn", "'text'", "decoder can"],
    ),
    "model": (
        [CONFIG, "{workdir}", "--config.model.name=recurent"],
        ["model.name='recurent'", "Did you mean 'recurrent'?"],
    ),
    "beam": ([*PAIRS, "{workdir}", "--config.decoding.beam=0"], ["decoding.beam=0", "at least 1"]),
    "longest translation": (
        [*PAIRS, "{workdir}", "--config.decoding.max_length=50"],
        ["decoding.max_length=50", "task.length = 40"],
    ),
    "data set out of reach": ([TEXT, "{workdir}"], ["tinyshakespeare/input.txt", "DATA_DIR"]),
    "another run's workdir": (
        [CONFIG, "--workdir={tmp}/taken"],
        ["{tmp}/taken", "model.width (999 there, 64 here)", "another --workdir"],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("user")
    (tmp / "other.py").write_text("x = 1\n")
    (tmp / "broken.py").write_text("def get_config(:\n")
    (tmp / "raises.py").write_text("def get_config():\n    raise RuntimeError('boom')\n")
    (tmp / "latin.txt").write_bytes(b"caf\xe9 " * 500)
    (tmp / "short.txt").write_text("hello" * 5)
    (tmp / "long.txt").write_text("hello " * 500)
    small.corpus(tmp)
    config = to_plain(small.apply_deltas(small.load_config(small.BASE), {"model.width": 999}))
    write_json(tmp / "taken" / "config.json", config)
    return tmp


def filled(texts, folder):
    return [
        text.replace("{workdir}", f"--workdir={folder}/run").replace("{tmp}", str(folder))
        for text in texts
    ]


@pytest.fixture(scope="module")
def trained(folder):
    cases = [filled(arguments, folder) for arguments, _ in TRAIN.values()]
    before = snapshot(folder)
    outcomes = run_cases("research.train", cases, DATA_DIR=str(folder / "data"))
    assert snapshot(folder) == before, "a refused command left something behind"
    return dict(zip(TRAIN, outcomes, strict=True))


def snapshot(folder):
    # Compiled source of config files is Python's.
    paths = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {path: path.is_file() and path.read_bytes() for path in paths}


def check(outcome, parts):
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", outcome.err), outcome.err
    for part in parts:
        assert part in outcome.err


@pytest.mark.parametrize("case", TRAIN)
def test_mistake_in_training_is_one_line(trained, folder, case):
    check(trained[case], filled(TRAIN[case][1], folder))


EXPERIMENT = """
from research.ablation.experiment import Experiment, Outcome
experiment = Experiment(
    question="?", base={base!r}, arms={arms!r}, seeds={seeds!r}, tune={tune!r},
    tune_seeds={tune_seeds!r}, outcome=Outcome({metric!r}, split={split!r}),
)
"""
DEFAULTS = {
    "base": "configs/base.py",
    "arms": {"a": {}, "b": {"model.num_heads": 2}},
    "seeds": (0,),
    "tune": {},
    "tune_seeds": (),
    "metric": "accuracy",
    "split": "test",
}
SWEEP = {
    "key": ({"arms": {"a": {}, "b": {"model.widht": 3}}}, ["arm 'b'", "'model.width'"]),
    "heads": ({"arms": {"a": {}, "b": {"model.num_heads": 5}}}, ["arm 'b'", "model.num_heads = 5"]),
    "base": ({"base": "configs/bse.py"}, ["'configs/bse.py'", "'base.py'"]),
    "metric": ({"metric": "acuracy"}, ["outcome.metric='acuracy'", "'accuracy'"]),
    "split": ({"split": "tets"}, ["outcome.split='tets'", "'test'"]),
    "arms": ({"arms": {}}, ["arms is empty"]),
    "seeds": ({"seeds": ()}, ["seeds=()", "such as 5"]),
    "tuning without seeds": ({"tune": {"seed": (1,)}}, ["tune_seeds"]),
    "seeds that tuning saw": (
        {"tune": {"optimizer.learning_rate": (1e-3,)}, "tune_seeds": (0, 1)},
        ["seeds [0]", "fresh"],
    ),
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("sweeps")
    cases = []
    for number, (changes, _) in enumerate(SWEEP.values()):
        path = tmp / f"experiment{number}.py"
        path.write_text(EXPERIMENT.format(**DEFAULTS | changes))
        cases.append([f"--experiment={path}", f"--workdir={tmp / 'sweep'}"])
    good = "--experiment=experiments/attention_type.py"
    cases += [[good], [good, f"--workdir={tmp / 'sweep'}", "--shard=3/2"]]
    outcomes = run_cases("research.sweep", cases)
    assert not (tmp / "sweep").exists()
    return dict(zip([*SWEEP, "no workdir", "shard"], outcomes, strict=True))


@pytest.mark.parametrize("case", SWEEP)
def test_mistake_in_an_experiment_is_one_line(swept, case):
    check(swept[case], SWEEP[case][1])


def test_mistake_in_the_options_of_a_sweep_is_one_line(swept):
    check(swept["no workdir"], ["--workdir is missing"])
    check(swept["shard"], ["--shard='3/2'", "1/4"])


def test_bad_data_is_one_line_in_a_process_of_its_own(tmp_path):
    # Not through run_cases, so that this also checks that run_cases shows what a user sees.
    data = tmp_path / "data" / "tinyshakespeare"
    data.mkdir(parents=True)
    (data / "input.txt").write_text("not Shakespeare")
    outcome = run_alone(
        "research.train", TEXT, f"--workdir={tmp_path}/run", DATA_DIR=str(tmp_path / "data")
    )
    check(outcome, [f"{data}/input.txt has sha256 ", "not the recorded 86c4e6aa"])
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_not_of_text_cannot_be_continued(tmp_path):
    for name in ("translation", "recall"):
        config = small.apply_deltas(small.load_config(small.BASE), {"task.name": name})
        write_json(tmp_path / name / "config.json", to_plain(config))
    cases = [[f"--workdir={tmp_path / name}"] for name in ("translation", "recall")]
    translation, recall = run_cases("research.generate", cases)
    check(
        translation,
        ["task.name='translation'", "'text', 'tokens'; python -m research.translate takes it"],
    )
    check(
        recall,
        [f"{tmp_path}/recall is a run of task.name='recall'", "takes one of 'text', 'tokens'.\n"],
    )
