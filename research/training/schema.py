"""The schema of a run's config: all keys, which of them a run reads, and the run's id.

A config made from a file or the command line has every key of every part (`defaults`). A run is
defined by the keys that it reads (`resolve`): the chosen task, model, optimizer..., and their
options. Its id is a hash of these keys, except those at their declared default (`identity`), so a
new task, mechanism or option changes no existing id. A run's `config.json` holds the keys it reads.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_origin

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from research.attention.registry import MIXERS
from research.configuration import flatten, from_plain, nearest, nested, to_plain
from research.decoding.search import Decoding
from research.errors import UserError, read_part
from research.interpret.analyses import Interpretation
from research.models.conversion import WAYS, parse_head
from research.models.registry import (
    MODELS,
    TOLERATED,
    every_model_option,
    model_defaults,
    model_revisions,
    model_values,
    read_model,
)
from research.options import (
    Declared,
    OptionError,
    Part,
    chosen,
    common_default,
    declarations,
    defaults_read,
    every_option,
    name_of,
    option,
    revisions,
    values_read,
)
from research.parallel.layout import Parallel
from research.tasks.options import TaskOptions
from research.tasks.registry import TASKS, TaskSection
from research.training.optimizer import Optimizer

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run(Part):
    """The seeds that are trained."""

    seed: int = option(
        0,
        "seed of the initial parameters, the order of the data and dropout",
        least=0,
        most=2**32 - 1,
    )
    members: int = option(
        1, "number of seeds (seed, seed + 1, ...) that are trained as one program", least=1
    )


RANDOM: Mapping[str, Sequence[Any]] = {"init_from": ("",)}
"""What decides that training starts from random parameters."""


@dataclass(frozen=True, kw_only=True)
class Train(Part):
    """Length of training, evaluations and checkpoints: `config.train`."""

    steps: int = option(
        1500, "steps of training; 0, with init_from: evaluate what is there", least=0
    )
    log_every: int = option(50, "steps between rows of training metrics", least=1)
    eval_every: int = option(250, "steps between evaluations", least=1)
    eval_batches: int = option(16, "batches of an evaluation", least=1)
    checkpoint_every: int = option(
        500, "steps between checkpoints; the last step always saves", least=1
    )
    keep_checkpoints: int = option(2, "number of latest checkpoints to keep", least=1)
    init_from: str = option("", "run whose best parameters training starts from; '': random ones")
    init_heads: str = option(
        "mean",
        "how several key and value heads of that run become one: their mean, the first of them, or "
        "a new one at random initial values",
        allowed=WAYS,
        unless=RANDOM,
        source="Ainslie et al. 2023, section 2.1",
    )
    init_without_heads: tuple[str, ...] = option(
        (),
        "heads that start without a contribution, as 'layer.head' counted from 0: their rows of "
        "the output projection are zero",
        unless=RANDOM,
        source="Michel et al. 2019, section 2.3",
    )
    transfer_steps: int = option(
        0,
        "steps before training in which only what the attention of that run lacks learns, to give "
        "the outputs that it gave; 0: none",
        least=0,
        unless=RANDOM,
        source="Zhang et al. 2024 (LoLCATs), section 3",
    )
    transfer_rate: float = option(
        1e-2,
        "learning rate of these steps, which falls to 0 as a cosine",
        above=0,
        unless={"transfer_steps": (0,)},
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.steps and not self.init_from:
            message = "must be at least 1, or train.init_from must name a run to evaluate"
            raise OptionError("steps", 0, message)
        for text in self.init_without_heads:
            if parse_head(text) is None:
                message = "must be heads as 'layer.head', counted from 0, such as '0.3'"
                raise OptionError("init_without_heads", self.init_without_heads, message)


class Section(NamedTuple):
    """How to read one section of a config, as functions of its values or of the part read.

    Attributes:
      read: maps the section's values to the part that they describe. Raises UserError.
      values: maps that part to {key: value} of the keys that it reads.
      defaults: maps the part to {key: declared default} of these keys.
      revisions: maps the part to {component: revision} for revisions above 0.
      declared: maps the part to {key: declaration} of these keys.
      every: returns {key: declarations} of all keys of the section.
      tables: {choosing key: {name: part class}} of the outermost choices.
      root: class that declares the section's own keys, if there is one.
    """

    read: Callable[[Values], Any]
    values: Callable[[Any], dict[str, Any]]
    defaults: Callable[[Any], dict[str, Any]]
    revisions: Callable[[Any], dict[str, int]]
    declared: Callable[[Any], dict[str, Declared]]
    every: Callable[[], dict[str, list[Declared]]]
    tables: Mapping[str, Mapping[str, type[Part]]]
    root: type[Part] | None = None


def _section(name: str, root: type[Part]) -> Section:
    own = {key: found.option.table for key, found in declarations(root).items()}
    return Section(
        functools.partial(read_part, name, root),
        values_read,
        defaults_read,
        revisions,
        _declared,
        lambda: every_option([{name: root}]),
        {key: table for key, table in own.items() if table is not None},
        root,
    )


def _declared(part: Part) -> dict[str, Declared]:
    found: dict[str, Declared] = {}
    for one in (*chosen(part).values(), part):
        found |= {k: d for k, d in declarations(type(one)).items() if one.reads(d)}
    return found


def _declared_by_model(model: Any) -> dict[str, Declared]:
    every = every_model_option()
    return {key: every[key][0] for key in model_values(model)}


SECTIONS: dict[str, Section] = {
    "": _section("", Run),
    "task": _section("task", TaskSection),
    "model": Section(
        read_model,
        model_values,
        model_defaults,
        model_revisions,
        _declared_by_model,
        every_model_option,
        {"name": MODELS, "mixer": MIXERS},
    ),
    "optimizer": _section("optimizer", Optimizer),
    "train": _section("train", Train),
    "decoding": _section("decoding", Decoding),
    "interpret": _section("interpret", Interpretation),
    "parallel": _section("parallel", Parallel),
}
"""{section: how to read it}; the section is the prefix of a dotted key, "" for keys without one."""

DECODING = tuple(name for name, task in TASKS.items() if task.decodes)
"""Names of the tasks that read the section `decoding`."""


@functools.cache
def every_key() -> dict[str, list[Declared]]:
    """Returns {dotted key: declarations} of all keys that a config can have."""
    return {
        f"{section}.{key}" if section else key: declared
        for section, rules in SECTIONS.items()
        for key, declared in rules.every().items()
    }


def defaults() -> ConfigDict:
    """Returns a config with every key at its default, unlocked.

    A key whose default differs between parts is unset: a typed placeholder with value None.
    """
    values = {}
    for key, declared in every_key().items():
        default = common_default(declared)
        kind = declared[0].kind
        values[key] = placeholder(get_origin(kind) or kind) if default is None else default
    return ConfigDict(nested(values))


def resolve(config: ConfigDict | Values) -> ConfigDict:
    """Returns the keys that a run of a config reads, locked: the chosen parts and their options.

    Args:
      config: a whole or partial config; missing keys have their defaults.

    Raises UserError for an unknown key, an invalid value, or a key that is set but not read:
    ablating such a key would compare two identical arms.
    """
    sections = _by_section(config)
    known = every_key()
    for key in flatten(config):
        if key not in known:
            raise UserError(f"config key {key!r} does not exist.{nearest(key, known)}")
    parts = _read(sections)
    for section, values in sections.items():
        read = SECTIONS[section].values(parts[section]) if section in parts else {}
        for key, value in values.items():
            name = f"{section}.{key}" if section else key
            if key in read or name in TOLERATED:
                continue
            if value not in (None, common_default(known[name])):
                if section == "model":
                    # A model of another task reads other keys; that is what is wrong then.
                    check_model_for_task(parts["task"].name, values.get("name"))
                raise UserError(_unread(section, key, value, parts))
    return _restricted(parts)


def check_model_for_task(task: TaskOptions, model: str | None) -> None:
    """Raises UserError for a model that cannot learn a task."""
    able = task.task.models
    if model is not None and model not in able:
        raise UserError(
            f"model.name={model!r} cannot learn the task {name_of(task, TASKS)!r}; "
            f"{', '.join(able)} can."
        )


def resolve_recorded(plain: Values) -> ConfigDict:
    """Returns the keys a run reads, given its config.json, possibly from an older version."""
    return _restricted(_read(_by_section(plain)))


def identity(config: ConfigDict | Values) -> dict[str, Any]:
    """Returns what identifies a run: the keys it reads that are not at their default, nested.

    The layout over devices is excluded. "revisions" counts, per chosen component, how often a new
    version changed what it computes.
    """
    found: dict[str, Any] = {}
    parts = _read(_by_section(config))
    del parts["parallel"]
    for section, part in parts.items():
        rules = SECTIONS[section]
        default = rules.defaults(part)
        values = {key: v for key, v in rules.values(part).items() if v != default[key]}
        found |= {section: values} if section and values else values
    changed = _revisions(parts)
    return json.loads(json.dumps(found | ({"revisions": changed} if changed else {})))


def run_id(config: ConfigDict) -> str:
    """Returns the run id of a config: 12 hexadecimal digits of a hash of its `identity`."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_record(config: ConfigDict) -> dict[str, Any]:
    """Returns the content of a run's config.json: the keys it reads, and revisions above 0."""
    changed = _revisions(_read(_by_section(config)))
    return to_plain(resolve(config)) | ({"revisions": changed} if changed else {})


def record_of_existing(plain: Values) -> dict[str, Any]:
    """Returns the `run_record` of an existing config.json, with the revisions it was run with."""
    changed = dict(plain.get("revisions", {}))
    return to_plain(resolve_recorded(plain)) | ({"revisions": changed} if changed else {})


def named_parts() -> Iterator[tuple[str, type[Part]]]:
    """Yields all parts that declare options: ("optimizer", ...), ("optimizer.name adamw", ...)."""
    for section, rules in SECTIONS.items():
        if rules.root is not None:
            yield section, rules.root
        seen: set[str] = set()
        waiting = list(rules.tables.items())
        while waiting:
            key, table = waiting.pop(0)
            for name, part in table.items():
                label = f"{section}.{key} {name}"
                if label in seen:
                    continue
                seen.add(label)
                yield label, part
                inner = ((k, d.option.table) for k, d in declarations(part).items())
                waiting += [(k, t) for k, t in inner if t is not None]


def help_texts(config: ConfigDict) -> dict[str, str]:
    """Returns {dotted key: help text} of the keys that the run of a config reads."""
    return {
        f"{section}.{key}" if section else key: declared.option.help
        for section, part in _read(_by_section(config)).items()
        for key, declared in SECTIONS[section].declared(part).items()
    }


def _by_section(config: ConfigDict | Values) -> dict[str, dict[str, Any]]:
    """Returns {section: values}, with JSON lists as tuples; drops unknown sections."""
    known = SECTIONS.keys() | SECTIONS[""].every()
    plain = from_plain({k: v for k, v in config.items() if k in known}).to_dict()
    alone = {key: plain[key] for key in SECTIONS[""].every() if key in plain}
    return {"": alone} | {name: dict(plain.get(name, {})) for name in SECTIONS if name}


def _read(sections: Mapping[str, Values]) -> dict[str, Any]:
    """Returns {section: part read from its values}, without `decoding` if the task needs none."""
    parts = {name: SECTIONS[name].read(values) for name, values in sections.items()}
    if not parts["task"].name.decodes:
        del parts["decoding"]
    return parts


def _restricted(parts: Mapping[str, Any]) -> ConfigDict:
    values = {name: SECTIONS[name].values(part) for name, part in parts.items()}
    return ConfigDict(values.pop("") | values).lock()


def _revisions(parts: Mapping[str, Any]) -> dict[str, int]:
    found = {}
    for section, part in parts.items():
        if getattr(part, "revision", 0):
            found[section] = part.revision
        found |= {f"{section} {what}": n for what, n in SECTIONS[section].revisions(part).items()}
    return found


def _unread(section: str, key: str, value: Any, parts: Mapping[str, Any]) -> str:
    """Returns the error message for a key that is set but not read."""
    name = f"{section}.{key}"
    default = common_default(every_key()[name])
    leave = "leave it out" if default is None else f"leave it {default!r}"
    who, able = _who_would_read(section, key, parts)
    others = f", {', '.join(able)} {'does' if len(able) == 1 else 'do'}" if able else ""
    return f"{name}={value!r}: {who} does not read it{others}; {leave}."


def _who_would_read(section: str, key: str, parts: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Returns the choice that does not read a key ("task.name='recall'"), and names that would."""
    if section not in parts:
        return f"task.name={values_read(parts['task'])['name']!r}", list(DECODING)
    values = SECTIONS[section].values(parts[section])
    named = dict(named_parts())
    # The parts of attention are no parts of the model's options; values name them.
    labels = (f"{section}.{chooser} {one}" for chooser, one in values.items())
    attention = [named[label] for label in labels if label in named]
    of_options = (parts[section], *chosen(parts[section]).values())
    for part in (*map(type, of_options), *attention):
        declared = declarations(part).get(key)
        if declared is None:
            continue
        for other, wanted in declared.option.when.items():
            if other not in values:  # what decides is not read itself, for a reason of its own
                return _who_would_read(section, other, parts)
            return f"{section}.{other}={values[other]!r}", [str(one) for one in wanted]
        for other in declared.option.unless:
            return f"{section}.{other}={values[other]!r}", []
    able: dict[str, list[str]] = {}
    for label, part in named.items():
        where, _, one = label.partition(" ")
        if where.startswith(f"{section}.") and key in declarations(part):
            able.setdefault(where, []).append(one)
    where, names = next(iter(able.items()), (f"{section}.name", []))
    chooser = where.partition(".")[2]
    if chooser not in values:
        return f"{section}.name={values['name']!r}", [f"{chooser} {name}" for name in names]
    return f"{where}={values[chooser]!r}", names
