"""Keys of a model: one that it is said not to read changes nothing in it, and is refused."""

import pytest

from research.configuration import apply_deltas, flatten, load_config
from research.errors import UserError
from research.models.registry import MODELS, make_model, unread
from research.training.program import make_program
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

CARRIED = ("tie_embeddings", "filter_conv")
"""What a description has of all layers, though only some look at it."""


def model_config(deltas):
    flat = {f"model.{key}": value for key, value in deltas.items()}
    return apply_deltas(load_config(small.BASE), flat).model


def built(model):
    """The model of a config, whose keys are not checked."""
    outputs = (CLASSES,) if model.name == "classifier" else ()
    return MODELS[model.name](model, 16, 8, None, *outputs).config


OTHER = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.5}
NAMES = {
    "encoder": "mask=full, position=none",
    "cross": "mask=full, position=none, score=dot",
    "cell": "gru",
    "attention": "dot",
    "body": "none",
    "pooling": "attention",
    "listener": "transformer",
    "subsampling": "pyramid",
    "speller": "transformer",
    "activation": "relu",
    "norm": "layernorm",
    "mixer": "linear",
    "score": "dot",
    "mask": "window",
    "normalizer": "sigmoid",
    "position": "alibi",
    "rope_scaling": "linear",
    "implementation": "dense",
    "filter_conv": 17,
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_model_does_not_read_changes_nothing_and_is_refused(case):
    model = model_config(CASES[case])
    before = built(model)
    for key, default in unread(model).items():
        if key == "pattern":
            continue
        value = NAMES.get(key) or OTHER[type(default)](default)
        assert type(model[key]) is type(default) and default == load_config(small.BASE).model[key]
        changed = model_config(CASES[case] | {key: value})
        if key not in CARRIED:
            assert built(changed) == before, key
        with pytest.raises(UserError, match=f"model.{key}=.* does not read it, .* leave it"):
            make_model(changed, 16, 8, classes=CLASSES if changed.name == "classifier" else 0)


@pytest.mark.parametrize("case", ["bilstm", "embeddings", "transformer", "window"])
def test_every_key_of_a_classifier_changes_it_or_is_refused(case):
    model = model_config(CASES[case])
    before = built(model)
    # The scale is read where parameters are made, "auto" is an implementation by another name, and
    # some belong to the layers that embeddings alone lack.
    elsewhere = {"name", "init_scale", "implementation"}
    elsewhere |= {"num_layers", "dropout", "body"} if case == "embeddings" else set()
    silent = set()
    for key, value in flatten(model).items():
        if key in elsewhere or isinstance(value, tuple):
            continue
        other = NAMES.get(key) or OTHER.get(type(value), lambda v: "bfloat16")(value)
        try:
            after = make_model(model_config(CASES[case] | {key: other}), 16, 8, classes=CLASSES)
        except UserError:
            continue
        silent |= {key} if after.config == before else set()
    assert not silent


def test_the_heads_of_a_bilstm_are_refused_in_one_line():
    with pytest.raises(UserError) as error:
        make_model(model_config(CASES["bilstm"] | {"num_heads": 2}), 16, 8, classes=CLASSES)
    assert str(error.value) == (
        "model.num_heads=2: model.name='classifier' with model.body='bilstm' does not read it, "
        "a transformer that attends so does; leave it 4."
    )


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
            "optimizer.beta1=0.5: optimizer.name='sgd' does not read it, adamw does; leave it 0.9.",
        ),
        (
            {"optimizer__schedule": "constant", "optimizer__final_fraction": 0.5},
            "optimizer.final_fraction=0.5: optimizer.schedule='constant' does not read it, "
            "cosine, linear do; leave it 0.1.",
        ),
    ],
)
def test_keys_beside_the_model_that_nothing_reads_are_refused(deltas, message):
    with pytest.raises(UserError) as error:
        make_program(small.recall(**deltas))
    assert str(error.value) == message


def test_defaults_of_keys_beside_the_model_are_harmless():
    make_program(small.recall(optimizer__name="sgd", optimizer__schedule="constant"))
