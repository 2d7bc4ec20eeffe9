"""Targets, prices, memory and rows of a plan."""

import dataclasses
import functools
import json
import math

import pytest

from research.ablation.experiment import Experiment, Outcome
from research.cloud.expected import expected_collectives
from research.cloud.forecast import check_budget, forecast, forecast_experiment, total_cost
from research.cloud.prices import load_prices
from research.cloud.roofline import bandwidth, estimate
from research.cloud.table import rows_table, screen
from research.configuration import apply_deltas, flatten, load_config
from research.errors import UserError
from research.parallel.layout import Layout
from research.parallel.topology import CHIPS, parse_target, parse_targets
from tests import small

LM, SMALL_LM = "configs/tpu/lm_1b3.py", "configs/tpu/lm_125m.py"


@functools.cache
def planned(slice_, path=LM, **deltas):
    """The plan of a config on a slice, without compiling: planned(slice, task__batch_size=64)."""
    changes = {key.replace("__", "."): value for key, value in deltas.items()}
    config = apply_deltas(load_config(path), changes)
    return forecast(config, parse_target(slice_), load_prices(), compiling=False)


@pytest.fixture(scope="module")
def large():
    """The plan of the 1.3B config on its slice."""
    return planned("v5e:8x8")


@pytest.mark.parametrize(
    ("name", "devices", "chips"),
    [
        ("v5e:4x4", 16, 16),
        ("2*v5e:16x16", 512, 512),
        ("v4:2x2x1", 4, 4),
        ("tpu7x:2x2x1", 8, 4),
    ],
)
def test_devices_of_slices(name, devices, chips):
    target = parse_target(name)
    assert (target.devices, target.chips) == (devices, chips)


def test_the_slice_of_the_config_is_the_default():
    assert [t.name for t in parse_targets("", "v5e:4x4")] == ["v5e:4x4"]
    assert [t.name for t in parse_targets("v5e:2x2, v6e:2x4", "v5e:4x4")] == ["v5e:2x2", "v6e:2x4"]
    with pytest.raises(UserError, match="--topology is missing"):
        parse_targets("", "")
    with pytest.raises(UserError, match="Known: v4, v5e"):
        parse_targets("v9:2x2", "")


def test_what_is_kept_is_exact(large):
    # float32 parameters, two moments and the best: everything but norms is split over 64 devices.
    assert large.memory.parameters == pytest.approx(4 * large.traced.parameters / 64, rel=0.01)
    assert large.memory.optimizer == pytest.approx(2 * large.memory.parameters, rel=1e-3)
    assert large.memory.best == pytest.approx(large.memory.parameters, rel=1e-3)


def test_flops_are_six_per_parameter_and_token(large):
    tokens = 256 * 2048
    matrices = large.traced.parameters
    attention = 3 * 24 * 2 * (2 * 2048 * 2048)
    assert large.traced.model_flops == pytest.approx(tokens * (6 * matrices + attention), rel=0.01)
    # remat runs every layer forwards once more, but for its last product, which no gradient needs.
    extra = 24 * 8 * 2048**2 * 2 + attention / 3
    # Blocks above the diagonal are left out.
    blocks = 2048 // 512
    left_out = 4 / 3 * attention * (1 - (blocks + 1) / (2 * blocks))
    wanted = tokens * (6 * matrices + attention + extra - left_out)
    assert large.traced.flops == pytest.approx(wanted, rel=0.01)


def test_flops_at_great_length_follow_from_short_ones(monkeypatch):
    from research.cloud import step

    config = apply_deltas(
        load_config("configs/tpu/lm_125m.py"), {"task.length": 2048, "model.num_layers": 2}
    )
    task = step.abstract_task(config)
    counted = step._flops(config, task)
    monkeypatch.setattr(step, "COUNTED_UP_TO", 1024)
    assert step._flops(config, task) == pytest.approx(counted, rel=1e-3)


@pytest.mark.slow
def test_a_window_takes_less_time():
    long = {"task__length": 16384, "task__batch_size": 16}
    window = {"model__mask": "window", "model__window": 512}
    full, narrow = (planned("v5e:4x4", SMALL_LM, **long, **more).traced for more in ({}, window))
    assert narrow.model_flops == full.model_flops
    assert narrow.flops < 0.6 * full.flops


# Temporaries of compiled programs in GB: TPU v5e, libtpu 0.0.42.1, `--topology` without --estimate.
MEASURED = [
    ("v5e:8x8", {}, 4.12),
    ("v5e:4x4", {"task__batch_size": 64}, 4.13),
    ("v5e:4x4", {"optimizer__accumulate": 8}, 2.75),
    pytest.param("v5e:8x8", {"task__batch_size": 1024}, 13.68, marks=pytest.mark.slow),
    pytest.param("v5e:8x8", {"task__bpe_vocab_size": 2048}, 2.61, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("slice_", "deltas", "measured"), MEASURED)
def test_temporaries_are_within_15_percent_of_compiled_ones(slice_, deltas, measured):
    found = planned(slice_, **deltas)
    assert found.memory.temporaries == pytest.approx(1e9 * measured, rel=0.15)


def test_a_file_that_is_not_there_is_not_needed(large):
    assert not large.fits or large.memory.data > 0
    config = apply_deltas(load_config(LM), {"task.path": "nowhere.txt", "task.tokenizer": "char"})
    with pytest.raises(UserError, match="nowhere.txt"):
        forecast(config, parse_target("v5e:8x8"), {}, compiling=False)


def test_more_devices_need_less_memory_each_and_less_time():
    few, many = planned("v5e:4x8"), planned("v5e:8x8")
    assert many.memory.total < few.memory.total
    assert many.times.products == pytest.approx(few.times.products / 2)


def test_a_model_that_does_not_fit_says_by_how_much():
    found = planned("v5e:4x4", task__batch_size=512, parallel__fsdp=False)
    assert not found.fits
    assert f"{(found.needed - found.target.memory) / 1e9:.1f} GB over" in screen("run", [found])


def test_utilization_and_cost_follow_from_the_time(large):
    seconds = large.times.step
    assert large.hours == pytest.approx(50_000 * seconds / 3600)
    assert large.cost() == pytest.approx(large.hours * 64 * load_prices()["v5e"].on_demand)
    assert large.cost(spot=True) < large.cost()
    assert large.utilization == pytest.approx(large.traced.model_flops / seconds / (64 * 197e12))
    assert large.utilization <= 0.55


def test_the_slowest_of_products_memory_and_links_decides():
    target = parse_target("v5e:4x4")
    products = estimate(target, 16, 1e15, 1e9, [])
    memory = estimate(target, 16, 1e12, 1e12, [])
    assert (products.limit, memory.limit) == ("products", "memory")
    assert products.step == pytest.approx(1e15 / (16 * 197e12) / 0.55)
    assert memory.step == pytest.approx(1e12 / 0.819e12 / 0.8)


def test_links_of_a_torus():
    v5e = CHIPS["v5e"]
    assert bandwidth(v5e, (16, 16), 16) == 2 * 50e9  # a ring, both directions
    assert bandwidth(v5e, (16, 16), 256) == 4 * 50e9
    assert bandwidth(v5e, (4, 4), 4) == 50e9  # a line


def test_messages_between_slices_go_over_the_network():
    deltas = {"parallel__fsdp": False, "model__num_layers": 2}
    one, two = (planned(name, SMALL_LM, **deltas) for name in ("v5e:4x4", "2*v5e:4x4"))
    assert one.times.network == 0
    assert two.times.network > 0


@pytest.mark.parametrize(
    ("layout", "kinds"),
    [
        (Layout(), set()),
        (Layout(data=8), {"all-reduce"}),
        (Layout(data=8, fsdp=True), {"all-gather", "reduce-scatter"}),
        (Layout(model=4), {"all-reduce"}),
        (Layout(context=4), {"collective-permute"}),
    ],
)
def test_expected_messages(layout, kinds):
    found = expected_collectives(load_config(LM), layout, 1_000_000, 1)
    assert {c.kind for c in found} == kinds


def test_local_devices_are_compiled_for_and_have_no_price():
    config = small.recall(model__num_layers=1)
    found = forecast(config, parse_target("local"), load_prices(), compiling=True)
    assert found.compiled.temporaries > 0
    assert found.fits and found.cost() is None and found.times is None
    assert found.target.memory == math.inf
    assert "nothing" in screen("run", [found])
    kept = found.memory.total - found.memory.temporaries
    assert found.compiled.arguments == pytest.approx(kept, rel=0.05, abs=200)


EXPERIMENT = Experiment(
    question="?",
    base=small.BASE,
    common=small.RECALL | {"parallel.slice": "v5e:1x1", "model.num_layers": 1},
    arms={"a": {}, "b": {"model.init_scale": 2.0}},
    axes={"task.length": (16, 32)},
    tune={"optimizer.learning_rate": (1e-3, 1e-2)},
    tune_seeds=(7,),
    seeds=(0, 1, 2),
    outcome=Outcome("accuracy"),
)


def test_rows_count_the_runs_of_a_sweep():
    rows = forecast_experiment(EXPERIMENT, parse_target("v5e:1x1"), load_prices(), False, 8)
    assert [(r.arm, r.point["task.length"]) for r in rows] == [
        ("a", 16), ("b", 16), ("a", 32), ("b", 32),
    ]  # fmt: skip
    assert {r.runs for r in rows} == {2 * 1 + 3}
    assert [f.members for f in rows[0].forecasts] == [2, 3]
    assert total_cost(rows) == pytest.approx(sum(r.hours for r in rows) * 1.2)
    assert "total" in rows_table("sweep", rows).splitlines()[-4]


def test_small_populations_take_more_programs():
    one = dataclasses.replace(EXPERIMENT, arms={"a": {}}, axes={"task.length": (16,)})
    rows = forecast_experiment(one, parse_target("v5e:1x1"), {}, False, 2)
    assert [f.members for f in rows[0].forecasts] == [2, 2, 1]
    assert total_cost(rows) is None


def test_a_budget_is_a_gate():
    check_budget(9.0, 10.0, "it")
    check_budget(None, None, "it")
    with pytest.raises(UserError, match="costs about .11.00"):
        check_budget(11.0, 10.0, "it")
    with pytest.raises(UserError, match="there is no price"):
        check_budget(None, 10.0, "it")


def test_prices_have_a_date_and_a_source():
    prices = load_prices()
    assert set(prices) == set(CHIPS)
    assert all(p.date and p.source and p.sure in ("high", "low") for p in prices.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "no table"),
        ("{}", "no table"),
        ('{"rows": [{"generation": "v5e"}]}', "no table"),
        (None, "No such file"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, content, message):
    path = tmp_path / "prices.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_prices(path)


def test_a_price_is_a_number(tmp_path):
    row = dataclasses.asdict(load_prices()["v5e"]) | {"spot": "cheap"}
    (tmp_path / "prices.json").write_text(json.dumps({"rows": [row]}))
    with pytest.raises(UserError, match="spot='cheap' of v5e"):
        load_prices(tmp_path / "prices.json")


@pytest.mark.parametrize("name", ["lm_125m", "lm_1b3"])
def test_configs_for_slices_have_the_keys_of_base_and_fit(name):
    config, base = load_config(f"configs/tpu/{name}.py"), load_config(small.BASE)
    assert apply_deltas(base, flatten(config)) == config
    found = planned(config.parallel.slice, f"configs/tpu/{name}.py")
    assert found.fits
    assert found.traced.implementation == "splash"
    assert found.cost() < 1000
