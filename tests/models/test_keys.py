"""Keys of a model: those that neither it nor a mechanism of its layers reads are refused."""

import pytest

from research.configuration import apply_deltas, flatten, load_config
from research.errors import UserError
from research.models.registry import make_model, model_defaults, model_values, read_model
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


def model_config(deltas):
    flat = {f"model.{key}": value for key, value in deltas.items()}
    return apply_deltas(load_config(small.BASE), flat).model


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
def test_what_a_model_does_not_read_is_refused(case):
    model = model_config(CASES[case])
    for key in model.keys() - model_values(read_model(model)).keys():
        old = model[key]
        value = NAMES.get(key) or OTHER.get(type(old), lambda v: ("mask=window",))(old)
        changed = model_config(CASES[case] | {key: value})
        with pytest.raises(UserError, match=f"model.{key}=.* reads? it.*; leave it"):
            read_model(changed)


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_what_it_reads(case):
    """What is read describes the model again, and an unset key is at its default."""
    model = read_model(model_config(CASES[case]))
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
    model = model_config(CASES[case])
    before = make_model(model, 16, 8, classes=CLASSES).config
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
    assert str(error.value).startswith("model.num_heads=2: nothing here reads it (mixer softmax")
    assert str(error.value).endswith("; leave it 4.")


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ({"decoding__beam": 4}, "decoding.beam=4: nothing reads it, task.name='recall' decodes no"),
        ({"decoding__max_length": 4}, "decoding.max_length=4: nothing reads it"),
        ({"interpret__examples": 8}, r"interpret.examples=8: .* interpret.final=\(\) asks nothing"),
        ({"optimizer__name": "sgd", "optimizer__beta1": 0.5}, "optimizer.beta1=0.5: .* no moments"),
        (
            {"optimizer__schedule": "constant", "optimizer__final_fraction": 0.5},
            "optimizer.final_fraction=0.5: nothing reads it, optimizer.schedule='constant'",
        ),
    ],
)
def test_keys_beside_the_model_that_nothing_reads_are_refused(deltas, message):
    with pytest.raises(UserError, match=message):
        make_program(small.recall(**deltas))


def test_defaults_of_keys_beside_the_model_are_harmless():
    make_program(small.recall(optimizer__name="sgd", optimizer__schedule="constant"))
