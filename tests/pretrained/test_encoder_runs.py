"""Imported models with an encoder in the commands and pages, and mistakes in their directories."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from research.errors import UserError
from research.inspect.inputs import text_subject
from research.pretrained.config_reader import ConfigReader
from research.pretrained.importing import import_model
from research.pretrained.registry import FAMILIES
from research.training.runs import load_run_config, load_run_task, open_run
from tests.commands import run_commands
from tests.pretrained import tiny_encoders

WIDTH, HIDDEN, HEADS, LENGTH, VOCABULARY = 8, 12, 2, 16, 61
BERT = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": LENGTH,
    "id2label": {"0": "bad", "1": "good"},
}
T5 = {
    "model_type": "t5",
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": WIDTH // HEADS,
    "d_ff": HIDDEN,
    "num_layers": 1,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 8,
    "n_positions": LENGTH,
}
BART = {
    "model_type": "bart",
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": HIDDEN,
}


def dense(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name):
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def shapes_of_bert():
    layer, tables = "bert.encoder.layer.0", "bert.embeddings"
    found = {
        f"{tables}.word_embeddings.weight": (VOCABULARY, WIDTH),
        f"{tables}.position_embeddings.weight": (LENGTH, WIDTH),
        f"{tables}.token_type_embeddings.weight": (2, WIDTH),
    }
    for name in ("self.query", "self.key", "self.value", "output.dense"):
        found |= dense(f"{layer}.attention.{name}", WIDTH, WIDTH)
    found |= dense(f"{layer}.intermediate.dense", HIDDEN, WIDTH)
    found |= dense(f"{layer}.output.dense", WIDTH, HIDDEN)
    found |= norm(f"{layer}.attention.output.LayerNorm") | norm(f"{layer}.output.LayerNorm")
    found |= norm(f"{tables}.LayerNorm") | dense("bert.pooler.dense", WIDTH, WIDTH)
    return found | dense("classifier", 2, WIDTH)


def shapes_of_t5():
    found = {"shared.weight": (VOCABULARY, WIDTH)}
    stacks = {
        "encoder": ("SelfAttention", "DenseReluDense"),
        "decoder": ("SelfAttention", "EncDecAttention", "DenseReluDense"),
    }
    for stack, parts in stacks.items():
        found[f"{stack}.final_layer_norm.weight"] = (WIDTH,)
        for i, part in enumerate(parts):
            here = f"{stack}.block.0.layer.{i}"
            found[f"{here}.layer_norm.weight"] = (WIDTH,)
            if part == "DenseReluDense":
                found[f"{here}.{part}.wi.weight"] = (HIDDEN, WIDTH)
                found[f"{here}.{part}.wo.weight"] = (WIDTH, HIDDEN)
                continue
            found |= {f"{here}.{part}.{name}.weight": (WIDTH, WIDTH) for name in "qkvo"}
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found[table] = (8, HEADS)
    return found


def write(directory, config, shapes=None, tokenizer=""):
    """Writes a directory with random tensors, and returns it."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    tensors = {
        name: random.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in (shapes or {}).items()
    }
    if tensors:
        save_file(tensors, directory / "model.safetensors")
    if tokenizer:
        tiny_encoders.tokenizer(tokenizer).save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the directories of an imported T5 and an imported BERT."""
    home = tmp_path_factory.mktemp("encoders")
    import_model(write(home / "a", T5, shapes_of_t5(), "t5"), home / "t5")
    import_model(write(home / "b", BERT, shapes_of_bert(), "bert"), home / "bert")
    return {"t5": home / "t5", "bert": home / "bert"}


def test_commands_take_them(runs):
    longer = "far more words than there is room for in this model"
    translated, classified, wrong = run_commands(
        [
            (
                "research.translate",
                [f"--workdir={runs['t5']}", "--text=a dog runs", "--max_length=6"],
            ),
            ("research.classify", [f"--workdir={runs['bert']}", "a dog runs", longer]),
            ("research.classify", [f"--workdir={runs['t5']}", "a dog"]),
        ]
    )
    assert translated.code == 0, translated.err
    assert len(translated.out.splitlines()) == 1 and "1 lines in" in translated.err
    assert not any(name in translated.out for name in ("<pad>", "</s>"))
    assert classified.code == 0, classified.err
    first, second = (line.split("\t") for line in classified.out.splitlines())
    assert first[0] in BERT["id2label"].values() and 0.5 <= float(first[1]) <= 1
    names = [word.rpartition(":")[0] for word in first[3].split(" ")]
    assert names == ["[CLS]", *"adogruns", "[SEP]"]
    assert len(second[3].split(" ")) == LENGTH and " [SEP]:" in second[3]
    assert f"cut to task.length = {LENGTH} tokens: 1 texts (2)" in classified.err
    assert wrong.code == 2 and "python -m research.translate takes it" in wrong.err


def test_texts_have_around_them_what_the_tokenizer_says(runs):
    run = open_run(runs["bert"], load_run_config(runs["bert"]))
    subject = text_subject(run, "a dog")
    assert subject.batch["inputs"][0, [0, -1]].tolist() == [2, 3]
    assert (subject.input[0], subject.input[-1]) == ("[CLS]", "[SEP]")
    assert run.special.unknown == 1 and run.labels == ("bad", "good")

    run = open_run(runs["t5"], load_run_config(runs["t5"]))
    subject = text_subject(run, "a dog", target="a cat")
    assert subject.batch["source"][0, -1] == 1 and subject.batch["targets"][0, -1] == 1
    assert subject.batch["inputs"][0, 0] == 0  # T5 starts with padding
    assert subject.input == [" a", " d", "o", "g", "</s>"]
    with pytest.raises(UserError, match="python -m research.translate takes texts"):
        load_run_task(run)


OLDER = {
    "activation_dropout": 0.0, "add_bias_logits": False, "add_final_layer_norm": False,
    "attention_dropout": 0.0, "classif_dropout": 0.0, "init_std": 0.02, "max_length": 512,
    "normalize_before": False, "num_beams": 6, "num_hidden_layers": 6, "_num_labels": 3,
    "gradient_checkpointing": False, "output_past": True, "is_encoder_decoder": True,
}  # fmt: skip
"""Keys of published files of an older form, all of which say what a family does anyway."""


@pytest.mark.parametrize(
    ("config", "special"),
    [
        (
            T5 | {"output_past": True, "initializer_factor": 1.0, "task_specific_params": {"a": 1}},
            {"pad": 0, "start": 0, "end": 1},
        ),
        (
            BART | OLDER | {
                "normalize_embedding": True, "extra_pos_embeddings": 2, "bos_token_id": 0,
                "force_bos_token_to_be_generated": True, "length_penalty": 2.0, "min_length": 56,
                "no_repeat_ngram_size": 3, "early_stopping": True, "prefix": " ",
            },
            {"pad": 1, "start": 2, "end": 2, "first": 0},
        ),
        (
            BART | OLDER | {
                "model_type": "marian", "vocab_size": 90, "decoder_vocab_size": 90,
                "static_position_embeddings": True, "normalize_embedding": False,
                "extra_pos_embeddings": 90, "bad_words_ids": [[89]], "scale_embedding": True,
                "pad_token_id": 89, "decoder_start_token_id": 89, "eos_token_id": 0,
            },
            {"pad": 89, "start": 89, "end": 0},
        ),
        (
            BERT | {
                "directionality": "bidi", "pooler_fc_size": 768, "pooler_type": "first_token",
                "output_past": True, "_num_labels": 5, "position_embedding_type": "absolute",
                "finetuning_task": "sst-2",
            },
            {"pad": 0},
        ),
    ],
    ids=["t5", "bart", "marian", "bert"],
)  # fmt: skip
def test_published_configs_are_read(config, special):
    family = FAMILIES[config["model_type"]]
    read = ConfigReader(config)
    family.options(read)
    family.length(read)
    read.check_all_read()
    assert family.special(ConfigReader(config)) == special


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BERT | {"id2label": {"0": "bad", "2": "good"}}, "it must name 2 or more classes"),
        (BERT | {"id2label": {"0": "price"}}, "it must name 2 or more classes"),
        (BERT | {"problem_type": "regression"}, "problem_type='regression'"),
        (
            BERT | {"architectures": ["BertForMaskedLM"]},
            "BertForSequenceClassification can be read",
        ),
        (BERT | {"position_embedding_type": "relative_key"}, "'relative_key'"),
        (T5 | {"feed_forward_proj": "gated-relu"}, "feed_forward_proj='gated-relu'"),
        (BART | {"encoder_ffn_dim": 16}, "encoder_ffn_dim=16 and decoder_ffn_dim=12"),
        (BART | {"normalize_before": True}, "normalize_before=True"),
        (
            BART | {"model_type": "marian", "vocab_size": 61, "decoder_vocab_size": 60},
            "decoder_vocab_size=60",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_in_a_config_are_one_line(tmp_path, config, message):
    with pytest.raises(UserError, match=message) as error:
        import_model(write(tmp_path / "there", config), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_mistakes_in_a_directory_are_one_line(tmp_path):
    def refused(message, config, *more, **options):
        number = len(list(tmp_path.iterdir()))
        with pytest.raises(UserError, match=message) as error:
            import_model(write(tmp_path / str(number), config, *more), tmp_path / "run", **options)
        assert "\n" not in str(error.value)

    refused("decoder_start_token_id=61; the model has 61", T5 | {"decoder_start_token_id": 61},
            shapes_of_t5())  # fmt: skip
    refused(r"eos_token_id=\[1, 2\]; it must be the id of one", T5 | {"eos_token_id": [1, 2]},
            shapes_of_t5())  # fmt: skip
    refused("a t5 model does not read a corpus", T5, shapes_of_t5(), data="shards")
    few = {name: shape for name, shape in shapes_of_bert().items() if "pooler" not in name}
    refused("no tensor 'bert.pooler.dense.weight', 'bert.pooler.dense.bias'", BERT, few)
    refused("classifier.weight has shape", BERT | {"id2label": {i: str(i) for i in range(3)}},
            shapes_of_bert())  # fmt: skip
