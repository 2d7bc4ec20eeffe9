"""Measures whether a classifier's attention is a faithful explanation of its predictions.

Jain and Wallace 2019, "Attention is not Explanation" (NAACL): attention correlates only weakly with
gradients and leave-one-out importance (section 4.1, Table 2), and very different attention can give
the same output (4.2). Wiegreffe and Pinter 2019, "Attention is not not Explanation" (EMNLP): the
divergence of an adversarial attention has to be compared with the divergence between models trained
from different seeds (section 3.3). DeYoung et al. 2020, "ERASER: A Benchmark to Evaluate
Rationalized NLP Models" (ACL): whether a ranking finds the words that the output needs
(section 4.2). Where the task marks the tokens that decide the label, rankings are compared with
these as well.

Gradients are those of the log-odds of the predicted class. They equal the gradients of its
probability up to one factor shared by all words, so the ranking is the same, but they do not vanish
when the model is certain. For the comparison with attention, the weights are held fixed (Jain and
Wallace 2019, section 4.1): the gradient then flows through the pooled states, not through the
weights. Used as a ranking of its own, the gradient flows through both.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Bool, Float, Int, PyTree

from research.errors import UserError
from research.interpret.attribution import gradient, gradient_times_input, integrated_gradients
from research.interpret.capture import attention_records, record
from research.interpret.classification import log_odds
from research.interpret.erasure import leave_one_out_masks, logits_of_subsets
from research.interpret.faithfulness import (
    FRACTIONS,
    adversarial_weights,
    erasures,
    jensen_shannon,
    permutation_test,
)
from research.interpret.trained import Findings, Trained, batches
from research.messages import progress_of
from research.models.classifier import Classifier
from research.models.model import Model
from research.models.pooling import ATTENTION
from research.tasks.task import FRACTION, UNKNOWN, Batch, Range

RANKINGS = (ATTENTION, "gradient", "gradient_norm", "integrated_gradients", "random")
METRICS: Mapping[str, bool | None] = {
    "attention_entropy": None,
    "gradient_tau": True,
    "gradient_tau_significant": True,
    "leave_one_out_tau": True,
    "leave_one_out_tau_significant": True,
    "permutation_change": None,
    "adversarial_divergence": None,
    **{f"comprehensiveness_{name}": True for name in RANKINGS},
    **{f"sufficiency_{name}": False for name in RANKINGS},
}
"""{metric: whether a higher value means a more faithful explanation}; None: neither."""
RATIONALE_METRICS: Mapping[str, bool | None] = {
    f"truth_{name}": True for name in (*RANKINGS, "leave_one_out")
}
RANGES: Mapping[str, Range] = {
    # Correlations, and differences of the probability of a class.
    **dict.fromkeys(METRICS, (-1.0, 1.0)),
    **dict.fromkeys(("attention_entropy", "permutation_change"), FRACTION),
    **dict.fromkeys(("gradient_tau_significant", "leave_one_out_tau_significant"), FRACTION),
    "adversarial_divergence": (0.0, math.log(2)),
    **dict.fromkeys(RATIONALE_METRICS, FRACTION),
}
"""{metric: lowest and highest possible value}."""
SIGNIFICANT = 0.05
PERMUTATIONS = 100
EPSILON = 0.01
"""Largest change of the output allowed to an adversary: Jain and Wallace 2019, section 4.2.2."""
ADVERSARIES, ASCENT = 5, 200
"""Number of adversaries per example, and steps of gradient ascent for each."""
GRADIENTS = 32
"""Number of steps of integrated gradients."""


class Explanation(NamedTuple):
    """Logits, rankings and attention statistics of N examples; float32.

    Attributes:
      logits: (N, C) logits of the whole example.
      without_token: (N, T, C) logits without each token; rows of
        padding repeat the whole example's.
      erasure_logits: (N, R, 2, F, C) logits without the top-ranked tokens, and with only these.
      rankings: (N, R, T) scores by each of `RANKINGS`; gradients are signed, random scores are
        uniform. Padding: 0.
      fixed_attention_gradient: (N, T) signed gradient times embedding with attention held fixed.
      permutation_change: (N,) median change of the output when attention is permuted, in total
        variation.
      adversarial_divergence: (N,) largest Jensen-Shannon divergence of an attention with nearly
        this output.
      seed_divergence: (N,) mean divergence from the attention of the other members; 0 if there
        are none.
    """

    logits: Any
    without_token: Any
    erasure_logits: Any
    rankings: Any
    fixed_attention_gradient: Any
    permutation_change: Any
    adversarial_divergence: Any
    seed_divergence: Any


def check_pooling(model: Model, batch: Batch) -> None:
    """Raises UserError for a model that does not pool by attention.

    Mean pooling weights all tokens equally: without a ranking, faithfulness is undefined.
    """
    if not isinstance(model, Classifier) or model.config.pooling != ATTENTION:
        has = model.config.pooling if isinstance(model, Classifier) else "none"
        raise UserError(
            "interpret.final='faithfulness' examines the attention that a classifier pools with; "
            f"model.pooling={has!r} must be 'attention'."
        )


def faithfulness(trained: Trained) -> Findings:
    """Returns how faithfully attention explains the predictions of a classifier.

    Metrics, means over examples of at least two tokens:
      "attention_entropy": entropy relative to the maximum for the example's length; at 1 attention
        is uniform and ranks nothing.
      "gradient_tau": Kendall's tau between attention and the absolute gradient times embedding,
        with attention held fixed; "gradient_tau_significant", the fraction of examples with
        p < 0.05.
      "leave_one_out_tau", "leave_one_out_tau_significant": the same with the change of the output
        (total variation) when a token is left out.
      "permutation_change": median change of the output over permutations of the attention.
      "adversarial_divergence": divergence, in nats, of the furthest attention found with nearly
        the same output.
      "seed_divergence": divergence from the attention of other seeds in the population, and
        "adversarial_beyond_seeds", adversarial minus seed divergence; both absent for one seed.
      "comprehensiveness_X", "sufficiency_X": area over the perturbation curve of each ranking X:
        attention, gradient times embedding, gradient norm, integrated gradients and random. A
        transformer that normalizes its embeddings hardly depends on their norm, so gradient times
        embedding carries no signal there.
      "truth_X": precision at k by absolute score, k being the number of tokens that decide the
        label; only where the task marks them. X may also be "leave_one_out".
    Slices: both taus by predicted class.
    """
    found, examples = _explained(trained)
    real = np.arange(found.without_token.shape[1]) < examples["length"][:, None]
    predicted = found.logits.argmax(-1)
    left_out = total_variation(found.without_token, found.logits[:, None])
    falls = _falls(found, predicted)
    attention, held = found.rankings[:, 0], np.abs(found.fixed_attention_gradient)
    most = np.log(real.sum(-1))
    metrics = {"attention_entropy": mean(scipy.special.entr(attention).sum(-1) / most)}
    slices, labels = {}, {}
    for name, other in (("gradient", held), ("leave_one_out", left_out)):
        tau, p = kendall_taus(attention, other, real)
        metrics[f"{name}_tau"] = mean(tau)
        metrics[f"{name}_tau_significant"] = mean(np.where(np.isnan(p), p, p < SIGNIFICANT))
        classes = range(trained.task.classes)
        slices[f"{name}_tau_by_class"] = [mean(tau[predicted == c]) for c in classes]
        labels[f"{name}_tau_by_class"] = list(trained.task.slices["accuracy_by_class"])
    metrics["permutation_change"] = mean(found.permutation_change)
    metrics["adversarial_divergence"] = mean(found.adversarial_divergence)
    if len(jax.tree.leaves(trained.population_params)[0]) > 1:
        metrics["seed_divergence"] = mean(found.seed_divergence)
        metrics["adversarial_beyond_seeds"] = mean(
            found.adversarial_divergence - found.seed_divergence
        )
    for index, name in enumerate(RANKINGS):
        metrics[f"comprehensiveness_{name}"] = mean(falls[:, index, 0])
        metrics[f"sufficiency_{name}"] = mean(falls[:, index, 1])
    if "relevant" in examples:
        by_size = (*np.abs(found.rankings).swapaxes(0, 1), left_out)
        for name, scores in zip(RATIONALE_METRICS, by_size, strict=True):
            metrics[name] = mean(precision(scores, examples["relevant"], real))
    return Findings(metrics, slices, labels)


def kendall_taus(
    a: Float[np.ndarray, "N T"], b: Float[np.ndarray, "N T"], real: Bool[np.ndarray, "N T"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Returns Kendall's tau-b and two-sided p-value of each row; NaN if one ranking is constant.

    Uses scipy: p is exact for short rows without ties, otherwise a normal approximation.
    """
    # Imported here because scipy.stats is as slow to import as jax, and few commands need it.
    from scipy.stats import kendalltau

    found = [kendalltau(x[there], y[there]) for x, y, there in zip(a, b, real, strict=True)]
    return np.array([f.statistic for f in found]), np.array([f.pvalue for f in found])


def precision(
    scores: Float[np.ndarray, "N T"],
    relevant: Bool[np.ndarray, "N T"],
    real: Bool[np.ndarray, "N T"],
) -> Float[np.ndarray, " N"]:
    """Returns precision at k of the scores, where k is the number of relevant tokens of a row."""
    order = np.argsort(np.where(real, -scores, np.inf), axis=-1, kind="stable")
    number = relevant.sum(-1)
    first = np.arange(scores.shape[-1]) < number[:, None]
    return (np.take_along_axis(relevant, order, -1) & first).sum(-1) / number


def mean(values: Float[np.ndarray, " N"]) -> float:
    """Returns the mean of the values that are not NaN; NaN if all of them are."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else float("nan")


def total_variation(
    a: Float[np.ndarray, "*#b C"], b: Float[np.ndarray, "*#b C"]
) -> Float[np.ndarray, "*b"]:
    """Returns the total variation distance between the softmax distributions of two logits."""
    return np.abs(_softmax(a) - _softmax(b)).sum(-1) / 2


def _softmax(logits: Float[np.ndarray, "*b C"]) -> Float[np.ndarray, "*b C"]:
    # In float64: near probability 1, changes of a confident model are below float32 resolution.
    return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)


def _falls(found: Explanation, predicted: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N R 2"]:
    """Returns the drop in probability of the predicted class, averaged over all fractions."""
    rows = np.arange(len(predicted))
    whole = _softmax(found.logits)[rows, predicted]
    erased = _softmax(found.erasure_logits)[rows, ..., predicted].mean(-1)
    return whole[:, None, None] - erased


def _explained(trained: Trained) -> tuple[Explanation, dict[str, np.ndarray]]:
    """Returns explanations of the labelled examples of two or more tokens, and these examples.

    All are padded to the longest.
    """
    chosen = list(batches(trained.task, trained.split, trained.examples))
    report = progress_of(sum(len(batch["label"]) for batch in chosen), "examples explained")
    found, examples, done = [], [], 0
    for index, batch in enumerate(chosen):
        key = jax.random.fold_in(jax.random.key(trained.seed), index)
        new = explain(trained.model, trained.population_params, trained.member, batch, key)
        counts = np.asarray((batch["label"] >= 0) & (batch["length"] >= 2))
        found.append([np.asarray(leaf)[counts] for leaf in new])
        examples.append({name: np.asarray(leaf)[counts] for name, leaf in batch.items()})
        report(done := done + len(counts))
    longest = max(batch["inputs"].shape[1] for batch in examples)
    axes = (None, 1, None, 2, 1, None, None, None)
    whole = [
        np.concatenate([padded_to(leaf, axis, longest) for leaf in leaves])
        for axis, leaves in zip(axes, zip(*found, strict=True), strict=True)
    ]
    joined = {
        name: np.concatenate(
            [padded_to(e[name], 1 if e[name].ndim == 2 else None, longest) for e in examples]
        )
        for name in examples[0]
    }
    return Explanation(*whole), joined


def padded_to(array: np.ndarray, axis: int | None, size: int) -> np.ndarray:
    """Returns the array zero-padded to `size` at the end of an axis; unchanged if axis is None."""
    if axis is None:
        return array
    room = [(0, size - n if i == axis else 0) for i, n in enumerate(array.shape)]
    return np.pad(array, room)


@functools.partial(jax.jit, static_argnums=0)  # compiled once for all members
def explain(
    model: Any, population_params: PyTree, member: Int[Array, ""], batch: Batch, key: Array
) -> Explanation:
    """Returns the explanations of every example in a batch.

    Args:
      model: a classifier that pools by attention.
      population_params: parameters of a population.
      member: index of the member to explain.
      batch: examples.
      key: random key for the permutations, the adversaries and the random ranking.
    """
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf)[member], population_params)
    attention, states = _pooled(model, params, batch)
    others = jax.vmap(lambda p: _pooled(model, p, batch)[0])(population_params)
    # The sum includes the member itself, whose divergence is 0, so the mean is over the others.
    apart = jensen_shannon(others, attention).sum(0) / max(len(others) - 1, 1)

    def one(tokens: Array, length: Array, weights: Array, states: Array, key: Array) -> Explanation:
        return _of_one(model, params, tokens, length, weights, states, key)

    keys = jax.random.split(key, len(attention))
    found = jax.vmap(one)(batch["inputs"], batch["length"], attention, states, keys)
    return found._replace(seed_divergence=apart)


def _pooled(
    model: Any, params: PyTree, batch: Batch
) -> tuple[Float[Array, "B T"], Float[Array, "B T N"]]:
    recorded = record(model, params, batch, ("weights", "values"))[1]
    (pooling,) = (part.sites for part in attention_records(recorded) if part.kind == "pooling")
    return pooling["weights"][:, 0, 0], pooling["values"][:, :, 0]


def _of_one(
    model: Any,
    params: PyTree,
    tokens: Int[Array, " T"],
    length: Int[Array, ""],
    attention: Float[Array, " T"],
    states: Float[Array, "T N"],
    key: Array,
) -> Explanation:
    real = jnp.arange(len(tokens)) < length
    shuffled, sought, drawn = jax.random.split(key, 3)

    def output(weights: Float[Array, " T"]) -> Float[Array, " C"]:
        pooled = weights[None], states[None]
        return jax.nn.softmax(model.apply({"params": params}, *pooled, method="from_weights")[0])

    label = output(attention).argmax()

    def odds(x: Float[Array, "T M"]) -> Float[Array, ""]:
        given = x[None], length[None]
        found = model.apply({"params": params}, *given, method="from_embeddings")
        return log_odds(found[0], label)

    def embed(tokens: Int[Array, " T"]) -> Float[Array, "T M"]:
        return model.apply({"params": params}, tokens[None], method=lambda m, t: m.embed(t))[0]

    def odds_of_held(x: Float[Array, "T M"]) -> Float[Array, ""]:
        states, _ = model.apply({"params": params}, x[None], length[None], method="states")
        pooled = attention[None], states
        return log_odds(model.apply({"params": params}, *pooled, method="from_weights")[0], label)

    x, nothing = embed(tokens), embed(jnp.full_like(tokens, UNKNOWN))
    rankings = jnp.stack(
        [
            attention,
            gradient_times_input(odds, x),
            gradient(odds, x),
            integrated_gradients(odds, x, nothing, GRADIENTS),
            jax.random.uniform(drawn, attention.shape),
        ]
    )
    rankings = jnp.where(real, rankings, 0.0)
    left = jnp.stack(jax.vmap(erasures, (0, None))(rankings, real), axis=1)
    # All erased versions in one call: separate calls would each compile the model again.
    masks = [real[None], leave_one_out_masks(real), left.reshape(-1, len(tokens))]
    logits = logits_of_subsets(model, params, tokens, jnp.concatenate(masks))
    adversaries = adversarial_weights(output, attention, sought, EPSILON, ASCENT, ADVERSARIES, real)
    return Explanation(
        logits=logits[0],
        without_token=logits[1 : 1 + len(tokens)],
        erasure_logits=logits[1 + len(tokens) :].reshape(len(RANKINGS), 2, len(FRACTIONS), -1),
        rankings=rankings,
        fixed_attention_gradient=jnp.where(real, gradient_times_input(odds_of_held, x), 0.0),
        permutation_change=permutation_test(
            output, attention, shuffled, PERMUTATIONS, real, batch_size=PERMUTATIONS
        ),
        adversarial_divergence=adversaries.divergence.max(),
        seed_divergence=jnp.zeros(()),
    )
