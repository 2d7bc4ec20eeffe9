"""Answers to lm-eval against those of its own adapter of transformers, on a random GPT-2."""

import numpy as np
import pytest

from research.decoding.harness import Reader, adapter
from research.decoding.needle import needle_cells, needles, repeated
from research.pretrained.importing import import_model
from research.tasks.text.tokenizer import characters
from research.training.runs import load_run_config, open_run

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
huggingface = pytest.importorskip("lm_eval.models.huggingface")
instance = pytest.importorskip("lm_eval.api.instance")

ALPHABET = "\n .?0123456789AITRhepaskyiltbmrundcg"
LENGTH = 96
TEXT = "The pass key is 12345. Remember it."


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Returns our adapter of a GPT-2, lm-eval's, and the run."""
    home = tmp_path_factory.mktemp("parity")
    torch.manual_seed(0)
    size = {"vocab_size": len(ALPHABET), "n_positions": LENGTH, "n_embd": 32, "n_layer": 2}
    config = transformers.GPT2Config(**size, n_head=4, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(home / "there")
    tokenizer = characters(ALPHABET)
    (home / "there" / "tokenizer.json").write_text(tokenizer.to_json())
    import_model(home / "there", home / "run")
    run = open_run(home / "run", load_run_config(home / "run"))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.library, bos_token="\n", eos_token="\n"
    )
    theirs = huggingface.HFLM(pretrained=model, tokenizer=fast, batch_size=2, device="cpu")
    reader = Reader(run.model, run.params, run.tokenizer, prefix=0, ends=(0,))
    return adapter(reader), theirs, run


def asked(kind, *arguments):
    return [instance.Instance(kind, {}, one, i) for i, one in enumerate(arguments)]


def test_log_probs_of_continuations(both):
    ours, theirs, _ = both
    requests = asked(
        "loglikelihood",
        ("The pass", " key"),
        ("The pass ", "key is"),
        (TEXT * 4, " It is"),
        ("", "Remember"),
        ("A", "?"),
        *((TEXT, f" {number}") for number in range(10)),
    )
    found, expected = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    np.testing.assert_allclose([p for p, _ in found], [p for p, _ in expected], rtol=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_log_probs_of_whole_texts(both):
    ours, theirs, _ = both
    requests = asked("loglikelihood_rolling", (TEXT,), (TEXT * 7,), ("A",))
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(requests), theirs.loglikelihood_rolling(requests), rtol=1e-4
    )


def test_what_is_written(both):
    ours, theirs, _ = both
    settings = {"until": ["?"], "max_gen_toks": 20, "do_sample": False}
    contexts = ("The pass", "key is", TEXT, TEXT * 4, "The bass")
    requests = asked("generate_until", *((context, settings) for context in contexts))
    found = ours.generate_until(requests)
    assert found == theirs.generate_until(requests)
    assert any(found)


def test_needles(both):
    """The log-probability of each answer is what transformers says of the same text."""
    _, theirs, run = both
    drawn = needles(run.tokenizer, 3)
    text = repeated(run.tokenizer.encode("The sky is.\n"), LENGTH)
    (cell,) = needle_cells(run.model, run.params, text, drawn, [LENGTH + 1], [0.0])
    begins = np.random.default_rng(0).integers(0, len(text) - LENGTH, 3)
    for i, one in enumerate(drawn):
        room = LENGTH + 1 - len(one.fact) - len(one.question) - len(one.answer)
        filler = text[begins[i] : begins[i] + room]
        context = np.concatenate([one.fact, filler, one.question]).tolist()
        request = (("", ""), context, one.answer.tolist())
        ((log_prob, greedy),) = theirs._loglikelihood_tokens([request])
        assert cell.log_prob[i] == pytest.approx(log_prob, rel=1e-4)
        assert cell.found[i] == greedy
