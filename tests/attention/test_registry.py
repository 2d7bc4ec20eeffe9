"""The registry: every entry has a case, and wrong options are refused in one clear line."""

import jax.numpy as jnp
import pytest

from research.attention import registry
from research.attention.errors import MechanismError, Unsupported
from research.attention.implementations import IMPLEMENTATIONS, Implementation, attend
from research.attention.registry import MIXERS, Options, make_mixer
from tests.attention.cases import BIAS_CASES, MASK_CASES, MIXER_CASES, NAMED

BASE = {"width": 16, "num_heads": 4, "max_length": 12}


def test_every_entry_has_a_case():
    assert set(MASK_CASES) == set(registry.MASKS)
    assert set(BIAS_CASES) == set(registry.BIASES)
    assert set(MIXER_CASES) == set(registry.MIXERS)
    tables = {
        "mixer": registry.MIXERS,
        "mask": registry.MASKS,
        "score": registry.SCORES,
        "normalizer": registry.NORMALIZERS,
        "position": registry.POSITIONS,
    }
    for field, table in tables.items():
        assert {getattr(o, field) for o in NAMED.values()} == set(table)
    for name, entry in MIXERS.items():
        ran = {o.resolved_implementation for o in NAMED.values() if o.mixer == name}
        assert ran == set(entry.implementations)
    for name, build in registry.BIASES.items():
        assert any(build(o) is not None for o in NAMED.values()), name


# Options, the field that is named, and what the line has to say.
REFUSED = [
    ({"mixer": "sofmax"}, "mixer", "did you mean 'softmax'"),
    ({"mixer": "zzz"}, "mixer", "one of softmax, linear, gated_convolution"),
    ({"score": "scaleddot"}, "score", "did you mean 'scaled_dot'"),
    ({"mask": "casual"}, "mask", "did you mean 'causal'"),
    ({"normalizer": "sofmax"}, "normalizer", "did you mean 'softmax'"),
    ({"position": "alibbi"}, "position", "did you mean 'alibi'"),
    ({"implementation": "blockwize"}, "implementation", "did you mean 'blockwise'"),
    ({"width": 18}, "num_heads", "width = 18"),
    ({"num_kv_heads": 3}, "num_kv_heads", "must divide num_heads = 4"),
    ({"num_kv_heads": 8}, "num_kv_heads", "must divide num_heads = 4"),
    ({"width": 0}, "width", "at least 1"),
    ({"width": "16"}, "width", "type int, not str"),
    ({"width": True}, "width", "type int, not bool"),
    ({"num_layers": 0}, "num_layers", "at least 1"),
    ({"window": -1}, "window", "0 or more"),
    ({"softcap": float("nan")}, "softcap", "0 or more"),
    ({"temperature": 0.0}, "temperature", "positive"),
    ({"rope_base": float("inf")}, "rope_base", "finite"),
    ({"init_stddev": -1.0}, "init_stddev", "0 or more"),
    ({"mask": "window"}, "window", "at least 1"),
    ({"mask": "prefix"}, "prefix_length", "at least 1"),
    ({"window": 4}, "window", "use mask 'window'"),
    ({"prefix_length": 4}, "prefix_length", "use mask 'prefix'"),
    ({"position": "rope", "head_width": 3}, "position", "head width 3 is odd"),
    ({"filter_length": 3}, "filter_length", "gated_convolution has"),
    ({"mixer": "linear", "score": "cosine"}, "score", "softmax has"),
    ({"mixer": "linear", "position": "alibi"}, "position", "softmax has"),
    ({"mixer": "linear", "position": "rope"}, "position", "softmax has"),
    ({"mixer": "linear", "mask": "full"}, "mask", "leave it 'causal'"),
    ({"mixer": "linear", "num_kv_heads": 2}, "num_kv_heads", "softmax has"),
    ({"mixer": "linear", "softcap": 2.0}, "softcap", "softmax has"),
    ({"mixer": "linear", "implementation": "dense"}, "implementation", "chunkwise"),
    ({"mixer": "gated_convolution", "window": 4}, "window", "softmax has"),
    ({"mixer": "gated_convolution", "head_width": 4}, "head_width", "softmax, linear has"),
    ({"implementation": "recurrent"}, "implementation", "auto, dense, blockwise"),
]


@pytest.mark.parametrize(("extra", "field", "says"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_wrong_options_are_refused_in_one_line(extra, field, says):
    with pytest.raises(MechanismError) as caught:
        Options(**(BASE | extra))
    message = str(caught.value)
    assert caught.value.field == field
    assert message.startswith(f"{field} = {caught.value.value!r}: ")
    assert says in message
    assert "\n" not in message


def test_heads_do_not_matter_to_a_mixer_without_them():
    make_mixer(Options(width=15, num_heads=4, max_length=8, mixer="gated_convolution"))


def test_auto_takes_blocks_for_long_sequences():
    long = {"max_length": registry.DENSE_UP_TO + 1}
    assert Options(**BASE).resolved_implementation == "dense"
    assert Options(**(BASE | long)).resolved_implementation == "blockwise"
    assert Options(**(BASE | long | {"mixer": "linear"})).resolved_implementation == "chunkwise"
    assert make_mixer(Options(**(BASE | long))).implementation == "blockwise"


def test_a_future_implementation_that_lacks_the_mechanism_is_refused(monkeypatch):
    """Options go by what an implementation says it lacks, not by a list of their own."""
    plain = Implementation(
        IMPLEMENTATIONS["dense"].attend,
        lambda score, mask, biases, normalizer: "biases" if biases else "",
        blocked=False,
    )
    monkeypatch.setitem(IMPLEMENTATIONS, "plain", plain)
    softmax = MIXERS["softmax"]
    names = (*softmax.implementations, "plain")
    monkeypatch.setitem(MIXERS, "softmax", softmax._replace(implementations=names))
    Options(**BASE, implementation="plain")
    with pytest.raises(MechanismError, match="lacks biases; dense, blockwise has it"):
        Options(**BASE, implementation="plain", softcap=1.0)
    x = jnp.ones((1, 2, 1, 2))
    with pytest.raises(Unsupported, match="'pallas' is unknown; there are dense, blockwise, plain"):
        attend(x, x, x, implementation="pallas")
