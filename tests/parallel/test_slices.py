"""Names of TPU slices, against the tables that Google's documentation prints."""

import pytest

from research.errors import UserError
from research.parallel.slices import GENERATIONS, parse_slice

# cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x: topology and accelerator type.
DOCUMENTED = {
    "v4:2x2x1": "v4-8",
    "v4:2x2x4": "v4-32",
    "v4:4x4x4": "v4-128",
    "v5e:1x1": "v5litepod-1",
    "v5e:2x4": "v5litepod-8",
    "v5e:4x4": "v5litepod-16",
    "v5e:16x16": "v5litepod-256",
    "v5p:2x2x1": "v5p-8",
    "v5p:2x4x4": "v5p-64",
    "v5p:8x8x16": "v5p-2048",
    "v6e:2x2": "v6e-4",
    "v6e:4x4": "v6e-16",
    "tpu7x:4x4x4": "tpu7x-128",
}


@pytest.mark.parametrize(("text", "name"), DOCUMENTED.items())
def test_accelerator_types_are_those_of_the_documentation(text, name):
    assert parse_slice(text).accelerator_type == name
    assert str(parse_slice(text)) == text


def test_several_slices():
    two = parse_slice("2*v5e:16x16")
    assert (two.count, two.chips, two.accelerator_type) == (2, 256, "v5litepod-256")
    assert two.distributed and str(two) == "2*v5e:16x16"
    assert not parse_slice("v5e:2x2").distributed
    assert parse_slice("2*v5e:2x2").distributed


def test_an_accelerator_type_stands_for_one_topology():
    for generation, entry in GENERATIONS.items():
        names = {parse_slice(f"{generation}:{t}").accelerator_type for t in entry.topologies}
        assert len(names) == len(entry.topologies)


@pytest.mark.parametrize(
    "text", ["", "v5e", "v5e:4x5", "v7:2x2", "0*v5e:2x2", "v5e:4x4;", "v5e:2x2x1"]
)
def test_what_is_not_sold_is_one_line_with_what_is(text):
    with pytest.raises(UserError) as error:
        parse_slice(text)
    said = str(error.value)
    assert repr(text) in said and "\n" not in said
    assert "v5e:4x4" in said or "Known: " in said
