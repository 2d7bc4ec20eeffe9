"""The registry: every entry has a case, and wrong options are refused in one clear line."""

import jax.numpy as jnp
import pytest

from research.attention import registry
from research.attention.errors import Unsupported
from research.attention.implementations.attend import IMPLEMENTATIONS, Implementation, attend
from research.attention.parts.part_options import summary
from research.attention.parts.tables import TABLES
from research.attention.registry import MIXERS
from research.attention.spec import make_mixer, mechanism_options, mixer_spec
from research.options import OptionError
from tests.attention.cases import ELSEWHERE, NAMED, PADDABLE, SPARSE, VARIANTS

BASE = {"width": 16, "num_heads": 4, "max_length": 12}


def test_every_entry_has_a_case():
    assert {o.name for o in NAMED.values()} == set(MIXERS)
    for field, table in TABLES.items():
        names = {o.values.get(field) for o in NAMED.values()}
        assert set(table) <= names, set(table) - names
    # A layer alone has no other's keys to share: see tests/models/test_across_layers.py.
    for name in registry.MECHANISM_OPTIONS.keys() - {"share_kv"}:
        changed = [o for o in NAMED.values() if o.values.get(name, 0) != o.defaults.get(name, 0)]
        assert changed, name


def test_every_option_has_a_meaning_and_limits():
    for key, declared in mechanism_options().items():
        for one in declared:
            assert one.option.help, key
            numbers = one.kind in (int, float)
            assert not numbers or {one.option.least, one.option.above} != {None}, key


def test_exceptions_of_the_suite_name_what_there_is():
    """A name that was removed from the registry must not stay behind as an exception."""
    assert set(PADDABLE) <= set(MIXERS)
    assert set(ELSEWHERE) <= set(IMPLEMENTATIONS)
    assert set(VARIANTS) <= set(MIXERS)
    for field, names in SPARSE.items():
        assert set(names) <= set(TABLES[field])


def test_every_entry_says_what_it_is():
    for table in (*TABLES.values(), MIXERS):
        for name, entry in table.items():
            assert len(summary(entry)) >= 5, name
            assert any(c.isdigit() for c in entry.source), f"{name}: a source has a year"
            assert set(entry.where) <= {"self", "cross", "decoder"}


# Options, the field that is named, and what the line has to say.
REFUSED = [
    ({"mixer": "sofmax"}, "mixer", "did you mean 'softmax'"),
    ({"mixer": "zzz"}, "mixer", "one of softmax, latent, differential"),
    ({"score": "scaleddot"}, "score", "did you mean 'scaled_dot'"),
    ({"mask": "casual"}, "mask", "did you mean 'causal'"),
    ({"mask": "causal & windw", "window": 3}, "mask", "did you mean 'window'"),
    ({"normalizer": "sofmax"}, "normalizer", "did you mean 'softmax'"),
    ({"position": "alibbi"}, "position", "did you mean 'alibi'"),
    ({"implementation": "blockwize"}, "implementation", "did you mean 'blockwise'"),
    ({"width": 18}, "num_heads", "width = 18"),
    ({"num_kv_heads": 3}, "num_kv_heads", "must divide num_heads = 4"),
    ({"num_kv_heads": 8}, "num_kv_heads", "must divide num_heads = 4"),
    ({"width": 0}, "width", "at least 1"),
    ({"width": "16"}, "width", "type int, not str"),
    ({"width": True}, "width", "type int, not bool"),
    ({"talking_heads": 1}, "talking_heads", "type bool, not int"),
    ({"num_layers": 0}, "num_layers", "at least 1"),
    ({"window": -1}, "window", "window, local, dilated"),
    ({"softcap": float("nan")}, "softcap", "finite"),
    ({"score": "cosine", "temperature": 0.0}, "temperature", "positive"),
    ({"position": "rope", "rope_base": float("inf")}, "rope_base", "finite"),
    ({"position": "rope", "rope_fraction": 1.5}, "rope_fraction", "at most 1"),
    ({"init_stddev": -1.0}, "init_stddev", "at least 0"),
    ({"mask": "window"}, "window", "at least 1, for mask 'window'"),
    ({"mask": "prefix"}, "prefix_length", "at least 1"),
    ({"mask": "dilated", "window": 4}, "dilation", "at least 1"),
    ({"mask": "strided"}, "stride", "at least 1"),
    ({"mask": "longformer", "window": 4}, "global_tokens", "at least 1"),
    ({"mask": "bigbird"}, "block_length", "at least 1"),
    ({"window": 4}, "window", "mask window, local, dilated"),
    ({"prefix_length": 4}, "prefix_length", "(mask prefix would)"),
    ({"score_width": 4}, "score_width", "(score additive, concat; mixer location_aware"),
    ({"sharpening": 2.0, "normalizer": "sigmoid"}, "sharpening", "(normalizer softmax would)"),
    ({"num_buckets": 16}, "num_buckets", "(position t5 would)"),
    ({"rope_factor": 2.0}, "rope_factor", "(position rope would)"),
    (
        {"position": "rope", "rope_scaling": "llama3", "rope_low_freq_factor": 5.0},
        "rope_low_freq_factor",
        "must be less than rope_high_freq_factor = 4",
    ),
    ({"position": "rope", "head_width": 3}, "position", "rotates channels in pairs"),
    ({"position": "shaw", "score": "additive"}, "position", "needs a score with a dot product"),
    ({"qkv_bias": True, "use_bias": True}, "qkv_bias", "use_bias=True adds these"),
    ({"qkv_bias": True, "mixer": "linear"}, "qkv_bias", "(mixer softmax would)"),
    ({"qk_norm": "layer"}, "qk_norm", "none, rms"),
    ({"qk_norm": "rms", "score": "location"}, "qk_norm", "'location' does not read both"),
    ({"qk_norm": "rms", "mixer": "latent"}, "qk_norm", "(mixer softmax would)"),
    ({"filter_length": 3}, "filter_length", "gated_convolution"),
    ({"latent_width": 3}, "latent_width", "(mixer latent would)"),
    ({"mixer": "linear", "score": "cosine"}, "score", "softmax"),
    (
        {"mixer": "linear", "position": "alibi"},
        "position",
        "softmax, latent and differential apply the other",
    ),
    ({"mixer": "linear", "position": "rope"}, "position", "it can be none, sinusoidal, learned"),
    ({"mixer": "linear", "mask": "full"}, "mask", "leave it out"),
    ({"mixer": "linear", "num_kv_heads": 2}, "num_kv_heads", "softmax"),
    ({"mixer": "linear", "softcap": 2.0}, "softcap", "softmax"),
    ({"mixer": "linear", "implementation": "dense"}, "implementation", "chunkwise"),
    ({"mixer": "linear", "feature_width": 8}, "feature_width", "performer"),
    ({"mixer": "gated_convolution", "window": 4}, "window", "leave it 0"),
    ({"mixer": "gated_convolution", "head_width": 4}, "head_width", "softmax, latent"),
    ({"mixer": "linformer", "mask": "causal"}, "mask", "whole sequence at once; it can be full"),
    (
        {"mixer": "latent", "position": "shaw"},
        "position",
        "it can be none, sinusoidal, learned, rope",
    ),
    ({"mixer": "latent", "num_kv_heads": 2}, "num_kv_heads", "softmax"),
    ({"mixer": "differential", "score": "general"}, "score", "softmax"),
    ({"mixer": "gru", "implementation": "chunkwise"}, "implementation", "auto, recurrent"),
    ({"implementation": "recurrent"}, "implementation", "auto, dense, blockwise"),
    ({"implementation": "blockwise", "score": "additive"}, "implementation", "dense"),
    ({"implementation": "blockwise", "talking_heads": True}, "implementation", "dense"),
    ({"implementation": "blockwise", "normalizer": "entmax15"}, "implementation", "dense"),
    ({"implementation": "blockwise", "predicted_window": 3}, "implementation", "dense"),
    ({"implementation": "splash", "position": "alibi"}, "implementation", "blockwise"),
    ({"implementation": "jax_cudnn", "normalizer": "softmax_sink"}, "implementation", "blockwise"),
]


@pytest.mark.parametrize(("extra", "field", "says"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_wrong_options_are_refused_in_one_line(extra, field, says):
    with pytest.raises(OptionError) as caught:
        mixer_spec(**(BASE | extra))
    message = str(caught.value)
    assert caught.value.field == field
    assert message.startswith(f"{field} = {caught.value.value!r}: ")
    assert says in message
    assert "\n" not in message


def test_heads_do_not_matter_to_a_mixer_without_them():
    make_mixer(width=15, num_heads=4, max_length=8, mixer="gated_convolution")


def test_auto_takes_blocks_for_long_sequences():
    long = {"max_length": 2000}
    assert mixer_spec(**BASE).implementation == "dense"
    assert mixer_spec(**(BASE | long)).implementation == "blockwise"
    assert mixer_spec(**(BASE | long), score="additive").implementation == "rows"
    assert mixer_spec(**(BASE | long | {"mixer": "linear"})).implementation == "chunkwise"
    assert make_mixer(**(BASE | long)).implementation == "blockwise"


def test_a_future_implementation_that_lacks_the_mechanism_is_refused(monkeypatch):
    """Options go by what an implementation says it lacks, not by a list of their own."""
    plain = Implementation(
        IMPLEMENTATIONS["dense"].attend,
        lambda mechanism: "biases" if mechanism.biases else "",
        takes_block_size=False,
    )
    monkeypatch.setitem(IMPLEMENTATIONS, "plain", plain)
    names = (*MIXERS["softmax"].implementations, "plain")
    monkeypatch.setattr(MIXERS["softmax"], "implementations", names)
    mixer_spec(**BASE, implementation="plain")
    with pytest.raises(OptionError, match="lacks biases; dense, blockwise"):
        mixer_spec(**BASE, implementation="plain", softcap=1.0)
    x = jnp.ones((1, 2, 1, 2))
    with pytest.raises(Unsupported, match="'pallas' is unknown; there are dense, blockwise"):
        attend(x, x, x, implementation="pallas")
