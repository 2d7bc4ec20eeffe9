"""Scores of heads against weights that are known, and the files that are written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.inspect.head_scores import (
    ON_REPEATED,
    HeadScores,
    head_scores,
    repeated_tokens,
    table,
    write_heads,
)
from research.interpret.capture import attention_records, record
from research.interpret.heads import head_measures
from research.models.registry import make_model
from tests import small


@pytest.fixture(scope="module")
def scored():
    config = small.recall(model__num_layers=3, model__num_heads=2)
    model = make_model(config.model, 13, 16)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    params = jax.tree.map(lambda a: 4 * a, params)
    tokens = repeated_tokens(13, 16, 6)
    return model, params, tokens, head_scores(model, params, tokens, ON_REPEATED, "repeated")


def test_the_second_half_repeats_the_first():
    tokens = repeated_tokens(50, 10, 3)
    assert tokens.shape == (3, 10) and len(np.unique(tokens)) > 8
    np.testing.assert_array_equal(tokens[:, :5], tokens[:, 5:])


def test_scores_are_the_measures_of_all_sequences_at_once(scored):
    model, params, tokens, scores = scored
    assert list(scores.heads) == [f"layer {i}.{h}" for i in range(3) for h in range(2)]
    recorded = record(model, params, {"inputs": jnp.asarray(tokens)}, ("weights", "visible"))[1]
    for column in scores.columns[:2]:
        measure = getattr(head_measures, column.measure)
        extra = (jnp.asarray(tokens),) if column.measure == "induction" else ()
        sums = [measure(p.sites["weights"], *extra) for p in attention_records(recorded)]
        expected = np.concatenate([np.asarray(s.total / s.count) for s in sums])
        np.testing.assert_allclose(column.values, expected, atol=1e-5)


def test_files(scored, tmp_path):
    scores = scored[3]
    paths = write_heads(scores, "<run>: 6 heads", tmp_path)
    assert [p.name for p in paths] == ["heads.tsv", "heads.png", "heads.html"]
    lines = paths[0].read_text().splitlines()
    assert lines[0].startswith("head\tinduction (repeated)") and len(lines) == 7
    page = paths[2].read_text()
    assert "&lt;run&gt;: 6 heads" in page and "Content-Security-Policy" in page
    best = scores.heads[int(np.argmax(scores.columns[0].values))]
    assert page.index(f">{best}<") == min(page.index(f">{head}<") for head in scores.heads)
    nothing = HeadScores(scores.heads, [scores.columns[0]._replace(values=np.full(6, np.nan))])
    assert "nan" in table(nothing)
