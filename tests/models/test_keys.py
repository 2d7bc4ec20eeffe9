"""Keys of a model: those that neither it nor a mechanism of its layers reads are refused."""

import pytest

from research.configuration import apply_deltas, flatten, load_config
from research.errors import UserError
from research.models.registry import make_model, model_defaults, model_values, read_model
from research.training.validation import check_config
from tests import small

CLASSES = 3
CASES = {
    "decoder": {},
    "encoder_decoder": {"name": "encoder_decoder"},
    "recurrent": {"name": "recurrent", "num_heads": 1},
    "speech": {"name": "speech", "num_heads": 1},
    "conformer, transformer": {"name": "speech", "listener": "conformer", "speller": "transformer"},
    "ctc alone": {"name": "speech", "ctc_weight": 1.0},
    "bilstm": {"name": "classifier", "body": "bilstm"},
    "embeddings": {"name": "classifier", "body": "none"},
    "transformer": {"name": "classifier"},
    "window": {"name": "classifier", "encoder": "mask=local, window=2"},
}


def every_key(deltas):
    """The model of a config with all keys, read or not."""
    flat = {f"model.{key}": value for key, value in deltas.items()}
    return apply_deltas(load_config(small.BASE), flat).model


OTHER = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.5}
NAMES = {
    "encoder": "mask=full, position=none",
    "cross": "mask=full, position=none, score=dot",
    "cell": "gru",
    "attention": "dot",
    "body": "none",
    "remat_keeps": "dots",
    "pooling": "attention",
    "listener": "transformer",
    "subsampling": "pyramid",
    "speller": "transformer",
    "activation": "relu",
    "norm": "layernorm",
    "norm_placement": "post",
    "canon": "acd",
    "mixer": "linear",
    "qk_norm": "rms",
    "value_residual": "half",
    "score": "dot",
    "mask": "window",
    "normalizer": "sigmoid",
    "position": "alibi",
    "rope_scaling": "linear",
    "implementation": "dense",
    "filter_conv": 17,
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_model_does_not_read_is_refused(case):
    model = every_key(CASES[case])
    for key in model.keys() - model_values(read_model(model)).keys() - {"num_heads"}:
        value = NAMES.get(key) or OTHER.get(type(model[key]), lambda v: ("mask=window",))(
            model[key]
        )
        with pytest.raises(UserError, match=f"model.{key}=.* does not read it.*; leave it"):
            small.model(**CASES[case] | {key: value})


def test_heads_are_no_part_of_a_model_without_them():
    """Arms of an ablation share them; two that differ in nothing else are one run."""
    assert small.model(**CASES["bilstm"] | {"num_heads": 2}) == small.model(**CASES["bilstm"])


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_what_it_reads(case):
    """What is read describes the model again, and an unset key is at its default."""
    model = read_model(every_key(CASES[case]))
    again = read_model(model_values(model))
    assert model_values(again) == model_values(model)
    outputs = {"classes": CLASSES if model_values(model)["name"] == "classifier" else 0}
    assert again.make(16, 8, **outputs).config == model.make(16, 8, **outputs).config
    alone = read_model({"name": model_values(model)["name"], **CASES[case]})
    defaults = model_defaults(model)
    set_here = {"name", *CASES[case]}
    assert {k: v for k, v in model_values(alone).items() if k not in set_here} == {
        k: defaults[k] for k in model_values(alone) if k not in set_here
    }


@pytest.mark.parametrize("case", ["bilstm", "embeddings", "transformer", "window"])
def test_every_key_of_a_classifier_changes_it_or_is_refused(case):
    model = every_key(CASES[case])
    before = make_model(model, 16, 8, classes=CLASSES).config
    # The scale is read where parameters are made, "auto" is an implementation by another name, and
    # some belong to the layers that embeddings alone lack.
    elsewhere = {"name", "init_scale", "implementation", "num_heads"}
    elsewhere |= {"num_layers", "dropout", "body"} if case == "embeddings" else set()
    silent = set()
    for key, value in flatten(model).items():
        if key in elsewhere or isinstance(value, tuple):
            continue
        other = NAMES.get(key) or OTHER.get(type(value), lambda v: "bfloat16")(value)
        try:
            after = make_model(small.model(**CASES[case] | {key: other}), 16, 8, classes=CLASSES)
        except UserError:
            continue
        silent |= {key} if after.config == before else set()
    assert not silent


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        (
            {"decoding__beam": 4},
            "decoding.beam=4: task.name='recall' does not read it, "
            "speech, transduction, translation do; leave it 1.",
        ),
        (
            {"interpret__examples": 8},
            "interpret.examples=8: interpret.final=() does not read it; leave it 256.",
        ),
        (
            {"optimizer__name": "sgd", "optimizer__beta1": 0.5},
            "optimizer.beta1=0.5: optimizer.name='sgd' does not read it, adamw, lion, muon, "
            "schedule_free do; leave it 0.9.",
        ),
        (
            {"optimizer__schedule": "constant", "optimizer__final_fraction": 0.5},
            "optimizer.final_fraction=0.5: optimizer.schedule='constant' does not read it, "
            "cosine, linear, wsd do; leave it 0.1.",
        ),
    ],
)
def test_keys_beside_the_model_that_nothing_reads_are_refused(deltas, message):
    with pytest.raises(UserError) as error:
        check_config(small.recall(**deltas))
    assert str(error.value) == message


def test_defaults_of_keys_beside_the_model_are_harmless():
    check_config(small.recall(optimizer__name="sgd", optimizer__schedule="constant"))
