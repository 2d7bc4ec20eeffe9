"""Search settings and scores of hypotheses: beam width, penalties and length limit.

Sequence-to-sequence models (research/models/model.py) give log p(token | source, tokens so far).
Tokens are PAD = 0, BOS = 1, EOS = 2, words from 3 on, or as `Search.special` says. PAD and BOS are
never produced. A hypothesis ends with EOS, which is forced at the length limit; its log probability
there is the model's, as for every other token.
"""

from dataclasses import InitVar, dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from research.decoding.sampling import Sampling
from research.errors import UserError, read_part
from research.options import OptionError, Part, option, values_read
from research.tasks.special_tokens import SpecialTokens

LEAST_COVERAGE = 1e-6
"""Lower bound of a source position's attention in the coverage penalty, which takes its log."""


@dataclass(frozen=True, kw_only=True)
class Decoding(Part):
    """How sequences are searched for once training has ended: `config.decoding`."""

    beam: int = option(1, "number of hypotheses that beam search keeps; 1: greedy search", least=1)
    length_penalty: float = option(
        0.0,
        "alpha in Wu 2016, equation 14; larger values favor longer hypotheses; 0: no penalty",
        least=0,
    )
    coverage_penalty: float = option(
        0.0,
        "beta in Wu 2016, equation 14; favors hypotheses that attend to the whole "
        "source; needs attention; 0: no penalty",
        least=0,
    )
    ctc_weight: float = option(
        0.0, "weight of the CTC score, for models with CTC (Watanabe 2017)", least=0, most=1
    )
    max_length: int = option(0, "maximum number of tokens in a hypothesis; 0: task.length", least=0)


@dataclass(frozen=True, kw_only=True)
class Search(Decoding):
    """How a hypothesis is found and scored.

    A hypothesis of n tokens, EOS included, scores log p / lp(n) + coverage_penalty * cp, with
    lp(n) = ((5 + n) / 6) ** length_penalty and cp = sum over source positions of
    log(min(attention received, 1)) (Wu et al. 2016, eq. 14), attention averaged over heads.
    With `ctc_weight` = w, log p is (1 - w) log p_attention + w log p_CTC (Watanabe et al. 2017,
    section IV.C). A CTC-only model has its own search algorithms (research/losses/ctc.py) and uses
    only `beam`, `nbest` and `max_length`.

    Attributes:
      nbest: number of hypotheses to return, at most `beam`; any number with `sampling`.
      sampling: draws the `nbest` hypotheses at random instead of searching; `beam` must be 1.
      special: ids of PAD, BOS and EOS.
      where: prefix of option names in error messages; not stored.

    Raises UserError for values out of range.
    """

    nbest: int = 1
    sampling: Sampling | None = None
    special: SpecialTokens = SpecialTokens()
    where: InitVar[str] = "--"

    def __post_init__(self, where: str) -> None:
        try:
            super().__post_init__()
        except OptionError as error:
            raise UserError(f"{where}{error.field}={error.value!r} {error.message}.") from None
        if self.nbest < 1:
            raise UserError(f"{where}nbest={self.nbest} must be at least 1.")
        if self.sampling is None and self.nbest > self.beam:
            raise UserError(f"{where}nbest={self.nbest} must be at most {where}beam={self.beam}.")
        if self.sampling is not None and self.beam > 1:
            raise UserError(
                f"{where}beam={self.beam} is for beam search and "
                f"{where}temperature={self.sampling.temperature} for sampling; give one of them."
            )
        if self.sampling is not None and self.ctc_weight:
            raise UserError(
                f"{where}ctc_weight={self.ctc_weight} is for beam search and "
                f"{where}temperature={self.sampling.temperature} for sampling; give one of them."
            )

    def limit(self, length: int, where: str = "--") -> int:
        """Returns the maximum number of tokens of a hypothesis, for a model with room for `length`.

        Raises UserError if `max_length` exceeds `length`.
        """
        if self.max_length > length:
            raise UserError(
                f"{where}max_length={self.max_length} must be at most task.length = {length}."
            )
        return self.max_length or length


def read_search(config: ConfigDict) -> Search:
    """Returns the search settings of `config.decoding`.

    Args:
      config: the whole config.

    Raises UserError for values out of range.
    """
    decoding = read_part("decoding", Decoding, config.decoding.to_dict())
    search = Search(**values_read(decoding), where="decoding.")
    search.limit(config.task.length, "decoding.")
    return search


def check_model(search: Search, config: Any, where: str = "--") -> None:
    """Raises UserError for a search that a model with this `config` does not support."""
    share = ctc_share(config)
    if search.ctc_weight and not share:
        raise UserError(
            f"{where}ctc_weight={search.ctc_weight} needs a model with CTC, and this one was "
            "trained without (model.ctc_weight is 0); use 0."
        )
    if search.sampling is not None and share == 1:
        raise UserError(
            f"{where}temperature={search.sampling.temperature} samples one token after "
            "another, which a model with CTC alone (model.ctc_weight is 1) cannot do; use 0."
        )


def ctc_share(config: Any) -> float:
    """Returns the weight of CTC in a model's objective: 0 without CTC, 1 for CTC alone."""
    return getattr(config, "ctc_weight", 0.0)


class Hypotheses(NamedTuple):
    """The sequences found, best first (samples in the order of drawing).

    Attributes:
      tokens: (B, N, T) int32, EOS included, PAD after it.
      lengths: (B, N) int32, EOS included; 0 if there are fewer than N hypotheses.
      scores: (B, N) float32, see `Search`; -inf if there are fewer than N hypotheses.
      log_probs: (B, N) float32, the sum of the tokens' log probabilities.
      positions: (B,) int32, number of positions of the encoder memory without padding, at most S; S
        is the number of source tokens, or fewer if the model downsamples time.
      weights: (B, N, H, T, S) float32, attention of each token over the memory, zero past the
        length; H = 0 for a model without attention. None unless requested.
    """

    tokens: Int[Array, "B N T"]
    lengths: Int[Array, "B N"]
    scores: Float[Array, "B N"]
    log_probs: Float[Array, "B N"]
    positions: Int[Array, " B"]
    weights: Float[Array, "B N H T S"] | None = None


def next_log_probs(
    log_probs: Float[Array, "R V"], at: Int[Array, ""], limit: int, special: SpecialTokens
) -> Float[Array, "R V"]:
    """Returns log p of each next token, with -inf for tokens that are not allowed.

    Args:
      log_probs: log p of all tokens.
      at: number of tokens before it.
      limit: maximum number of tokens; the last of them must be EOS.
      special: ids of PAD, BOS and EOS.
    """
    number = jnp.arange(log_probs.shape[-1])
    ends = number == special.end
    allowed = (number != special.pad) & ((number != special.start) | ends)
    if special.first >= 0:
        allowed = jnp.where(at == 0, number == special.first, allowed)
    allowed = jnp.where(at == limit - 1, ends, allowed)
    return jnp.where(allowed, log_probs, -jnp.inf)


def attention_received(weights: Float[Array, "R H S"], search: Search) -> Float[Array, "R S2"]:
    """Returns the attention that each source position receives from one token, mean over heads.

    S2 is S, or 0 without a coverage penalty. Raises UserError for a coverage penalty on a model
    without attention.
    """
    if not search.coverage_penalty:
        return weights.sum(axis=1)[:, :0]
    if not weights.shape[1]:
        raise UserError(
            f"--coverage_penalty={search.coverage_penalty} needs attention, and this model has no "
            "attention; use 0."
        )
    return weights.mean(axis=1)


def hypothesis_scores(
    log_probs: Float[Array, "*r"],
    lengths: Int[Array, "*r"],
    coverage: Float[Array, "*r S2"],
    valid: Bool[Array, "*r S"],
    search: Search,
) -> Float[Array, "*r"]:
    """Returns the scores of finished hypotheses (Wu et al. 2016, eq. 14).

    Args:
      log_probs: log p of the whole hypothesis.
      lengths: number of tokens, EOS included.
      coverage: attention that each source position received in total; see `attention_received`.
      valid: whether a source position is not padding; broadcasts.
      search: search settings with the penalties.
    """
    scores = log_probs / length_divisor(lengths, search)
    if search.coverage_penalty:
        read = jnp.log(jnp.clip(coverage, LEAST_COVERAGE, 1.0))
        scores += search.coverage_penalty * jnp.where(valid, read, 0.0).sum(-1)
    return scores


def length_divisor(lengths: Any, search: Search) -> Any:
    """Returns lp(n) = ((5 + n) / 6) ** alpha of Wu et al. 2016, eq. 14."""
    return ((5.0 + lengths) / 6.0) ** search.length_penalty
