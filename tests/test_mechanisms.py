"""The page of mechanisms says what the registry says."""

from research import mechanisms
from research.attention import registry
from tests.conftest import ROOT


def test_the_page_is_what_the_command_writes():
    written = (ROOT / "MECHANISMS.md").read_text()
    assert written == mechanisms.page(), "run: python -m research.mechanisms"


def test_every_name_is_on_the_page():
    page = mechanisms.page()
    for table in (registry.MIXERS, *registry.TABLES.values()):
        for name in table:
            assert f"| `{name}` |" in page
    for name in registry.SWITCHES:
        assert f"| `model.{name}` |" in page


def test_what_cannot_be_decoded_has_no_state():
    row = next(line for line in mechanisms.page().splitlines() if "`linformer`" in line)
    assert "none: looks ahead" in row


def test_the_smoke_experiment_has_every_name():
    from experiments.every_mechanism import BASE, experiment

    for field, table in {**registry.TABLES, "mixer": registry.MIXERS}.items():
        chosen = {deltas.get(f"model.{field}") for deltas in experiment.arms.values()}
        assert set(table) <= chosen | set(BASE)
    for name in registry.SWITCHES:
        assert f"model.{name}" in experiment.arms[name]
