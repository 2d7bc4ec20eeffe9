"""The config and experiment files of the repository, and the functions that read such files."""

import contextlib
import functools
from dataclasses import replace

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from research.ablation.expansion import report_cells, tuning_cells
from research.ablation.experiment import points
from research.ablation.loading import load_experiment
from research.ablation.sweep import prepare
from research.configuration import (
    apply_deltas,
    flatten,
    from_plain,
    kinds_of,
    load_config,
    to_plain,
)
from research.errors import UserError
from research.tasks.speech.recordings import SpeechOptions, read_all
from research.tasks.text.labelled_text import read_labelled
from research.tasks.text.parallel_text import read_corpus
from research.tasks.tokens.corpus import open_corpus
from research.train import members_of
from research.training.program import MEMBER_KEYS, static_id
from research.training.schema import resolve, run_id
from research.training.validation import check_config
from tests import corpora as prepared
from tests import small
from tests.conftest import ROOT

# What configs/continued.py needs is a run, in tests/training/test_initial.py.
CONFIGS = sorted(
    p for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "continued")
)
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A prepared corpus, in place of larger ones."""
    return open_corpus(str(prepared.corpus(tmp_path_factory.mktemp("shards"), 400)))


@pytest.fixture
def corpora(tmp_path, monkeypatch, shards):
    """Stand in for data sets and trained models, which may not be on this machine."""
    monkeypatch.setattr("research.ablation.sweep.check_initial", lambda _: None)
    path = tmp_path / "corpus.txt"
    path.write_text("To be, or not to be, that is the question.\n" * 900)
    monkeypatch.setattr("research.tasks.text.language_modeling.text_file", lambda name: path)
    pairs = read_corpus(small.corpus(tmp_path), "de", "en")
    monkeypatch.setattr("research.tasks.tokens.windows.open_corpus", lambda *_: shards)
    monkeypatch.setattr("research.tasks.text.translation.read_corpus", lambda *_: pairs)
    texts = read_labelled(small.labelled(tmp_path))
    monkeypatch.setattr("research.tasks.text.sentiment.read_labelled", lambda _: texts)
    monkeypatch.setattr("research.tasks.speech.recordings.read_all", lambda _: recordings())


@functools.cache
def recordings():
    """Returns tones, in place of recordings that are downloaded."""
    return read_all(SpeechOptions(path="tones"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_validates_and_has_the_keys_of_base(path, corpora):
    config, base = load_config(str(path)), load_config(small.BASE)
    assert list(flatten(config)) == list(flatten(base))
    assert config.is_locked
    # Types too: a float where base has an int would refuse the override that base takes.
    given = {key: value for key, value in flatten(config).items() if value is not None}
    assert apply_deltas(base, given) == config
    check_config(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_key_can_be_overridden(path):
    # Neither a plain None nor a list can, on the command line.
    for key, kind in kinds_of(load_config(str(path))).items():
        assert kind in (bool, int, float, str, tuple), key


# These have so many arms, or layers that are no repeats, that they take as long as all others.
MANY_ARMS = dict.fromkeys(
    ("attention_type_full", "every_mechanism", "hybrids", "hybrids_text"), pytest.mark.slow
)
RESOLVED = [pytest.param(p, id=p.stem, marks=MANY_ARMS.get(p.stem, ())) for p in EXPERIMENTS]
WITH_AXES = [
    pytest.param(p, id=p.stem, marks=pytest.mark.slow)
    for p in EXPERIMENTS
    if load_experiment(str(p)).axes
]


@pytest.mark.parametrize("path", RESOLVED)
def test_every_experiment_resolves_at_its_first_point(path, tmp_path, corpora, monkeypatch):
    whole = load_experiment(str(path))
    first = replace(whole, axes={key: values[:1] for key, values in whole.axes.items()})
    monkeypatch.setattr("research.ablation.sweep.load_experiment", lambda *_: first)
    check_arms(path, tmp_path)


@pytest.mark.parametrize("path", WITH_AXES)
def test_every_experiment_resolves_at_all_points(path, tmp_path, corpora):
    check_arms(path, tmp_path)


def check_arms(path, tmp_path):
    experiment = prepare(str(path), tmp_path)
    first = next(iter(tuning_cells(experiment)), None)
    cells = [
        cell
        for point in points(experiment)
        for arm in experiment.arms
        for cell in report_cells(experiment, arm, point, first.tuned if first else {})
    ]
    assert len({cell.run for cell in cells}) == len(cells), "two arms are the same run"
    assert not list(tmp_path.glob("runs"))


def test_deltas_apply_and_leave_the_original_alone():
    base = load_config(small.BASE)
    changed = apply_deltas(base, {"model.num_heads": 8, "optimizer.learning_rate": 1})
    assert (changed.model.num_heads, base.model.num_heads) == (8, 4)
    assert changed.optimizer.learning_rate == 1.0
    assert isinstance(changed.optimizer.learning_rate, float)
    assert changed.is_locked


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ({"model.widht": 8}, "'model.widht' does not exist. Did you mean 'model.width'?"),
        ({"width": 8}, "'width' does not exist. Did you mean 'model.width'?"),
        ({"optimiser.learning_rate": 1.0}, "Did you mean 'optimizer.learning_rate'?"),
        ({"model.width": 8.0}, "'model.width' takes int, not float (8.0)"),
        ({"model.width": True}, "'model.width' takes int, not bool (True)"),
        ({"model.remat": 1}, "'model.remat' takes bool, not int (1)"),
        ({"task.num_pairs": 4}, "'task.num_pairs' takes tuple, not int (4)"),
        ({"task.num_pairs": (4, "x")}, "'task.num_pairs' takes a tuple of int, not (4, 'x')"),
        ({"model.init_scale": float("nan")}, "'model.init_scale' takes a finite number"),
        ({"model": 3}, "'model' does not exist"),
    ],
)
def test_deltas_that_do_not_fit_are_named(deltas, message):
    with pytest.raises(UserError) as error:
        apply_deltas(load_config(small.BASE), deltas)
    assert message in str(error.value)


def test_an_unset_key_is_set_on_the_command_line(monkeypatch):
    given = ["--config.task.kind=pair", "--config.task.test_lengths=(1, 2)"]
    argv = ["train", "--config=configs/base.py", *given]
    monkeypatch.setattr("sys.argv", argv)  # which is where the flag looks for overrides
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    values(argv)
    assert (values.config.task.kind, values.config.task.test_lengths) == ("pair", (1, 2))


def test_json_round_trip_keeps_the_config_and_its_identity():
    config = small.recall()
    again = from_plain(to_plain(config))
    assert again == config
    assert isinstance(again.task.num_pairs, tuple)
    assert run_id(again) == run_id(config)


def test_programs_are_shared_exactly_over_the_member_keys():
    config = small.recall()
    for key, value in flatten(resolve(config)).items():
        other = {int: lambda v: v + 1, float: lambda v: 0.7 * v + 0.2}.get(type(value))
        if other is not None:
            changed = apply_deltas(config, {key: other(value)})
            shared = key in MEMBER_KEYS or key.startswith("parallel.")
            with contextlib.suppress(UserError):  # out of range
                assert (static_id(changed) == static_id(config)) == shared, key


def test_members_are_consecutive_seeds():
    members = members_of(small.recall(seed=5, members=3))
    assert [m.seed for m in members] == [5, 6, 7]
    assert all(m.members == 1 for m in members)
    # A member has the identity of the same run trained alone.
    assert run_id(members[1]) == run_id(small.recall(seed=6))


def test_config_with_an_argument(tmp_path):
    path = tmp_path / "sized.py"
    path.write_text(
        "from configs import base\n"
        "def get_config(width):\n"
        "    config = base.get_config()\n"
        "    config.model.width = int(width)\n"
        "    return config\n"
    )
    assert load_config(f"{path}:48").model.width == 48


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", "defines no get_config(), so it is not a config file"),
        ("def get_config(:\n", "line 1: "),
        ("\n1 / 0\n", "line 2: ZeroDivisionError"),
        ("def get_config():\n    return missing\n", "line 2: NameError"),
        ("def get_config():\n    pass\n", "get_config() returns NoneType, not a ConfigDict"),
    ],
)
def test_files_that_are_no_config_are_explained(tmp_path, content, message):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        load_config(str(path))
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_differing_files_of_one_name_do_not_mix(tmp_path):
    for folder, width in (("a", 16), ("b", 32)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_name.py").write_text(
            "from ml_collections import ConfigDict\n"
            f"def get_config():\n    return ConfigDict({{'width': {width}}})\n"
        )
    widths = [load_config(str(tmp_path / f / "same_name.py")).width for f in ("a", "b")]
    assert widths == [16, 32]
    assert isinstance(load_config(str(tmp_path / "a" / "same_name.py")), ConfigDict)
