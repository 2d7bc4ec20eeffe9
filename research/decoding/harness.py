"""Answers what EleutherAI's lm-eval asks of a language model, with a decoder.

A task of lm-eval (Gao et al., "The Language Model Evaluation Harness") asks for three things: how
probable a text is after another, how probable a text is by itself, and what the model writes. The
answers are those of its own adapter of transformers, which the tests compare with.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from research.decoding.continuation import CHUNK, generate_chunk, prefill
from research.decoding.continuation_scores import score_continuations
from research.decoding.sampling import Sampling
from research.errors import UserError, check_name
from research.models.decoder import Decoder
from research.models.transformer import init_state
from research.tasks.text.tokenizer import Tokenizer

MOST_WRITTEN = 256
"""Tokens that are written if a task does not say how many; fewer for a model of less than 512."""
TOGETHER = 16
"""Texts that are continued side by side."""
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names that tasks have for the number of tokens."""
SETTINGS = (*LIMITS, "until", "do_sample", "temperature", "top_k", "top_p")

Progress = Callable[[int], None]
"""Called with the number of requests that are done."""


def no_progress(done: int) -> None:
    """Tells nobody."""


class Reader(NamedTuple):
    """A decoder that takes and gives text.

    Attributes:
      model: the decoder.
      params: its parameters.
      tokenizer: that of the model.
      prefix: the token that comes before a text that nothing comes before.
      ends: tokens after which nothing is written.
      streams: whether the model was made by `research.decoding.streaming.streaming`.
    """

    model: Decoder
    params: Any
    tokenizer: Tokenizer
    prefix: int
    ends: Sequence[int] = ()
    streams: bool = False

    @property
    def longest(self) -> int:
        """Tokens that the model reads at once; 0: any number."""
        return 0 if self.streams else self.model.config.length


def continuation_log_probs(
    reader: Reader, requests: Sequence[tuple[str, str]], progress: Progress = no_progress
) -> list[tuple[float, bool]]:
    """Returns the log-probability (nats) of continuations of texts, and if they are the greedy one.

    Args:
      reader: the model.
      requests: (context, continuation) of each; without a context it follows the prefix.
      progress: told how far it is.

    Raises UserError for a continuation that the model cannot read at once.
    """
    pairs = [encoded_pair(reader, *request) for request in requests]
    found = score_continuations(reader.model, reader.params, pairs, reader.streams, progress)
    return list(zip(found.log_prob.tolist(), found.greedy.tolist(), strict=True))


def encoded_pair(reader: Reader, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Returns the tokens of a text and of its continuation, split where the text ends.

    Spaces at the end of the context belong to the continuation, whose first word has tokens with
    the space before it.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces and spaces < len(context):
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    if not context:
        tokens = reader.tokenizer.encode(continuation).tolist()
        # A continuation that begins with the prefix has its context in it.
        begins = tokens[:1] == [reader.prefix]
        return ([reader.prefix], tokens[1:] if begins else tokens)
    whole = reader.tokenizer.encode_start(context + continuation).tolist()
    before = reader.tokenizer.encode_start(context).tolist()
    return before, whole[len(before) :]


def text_log_probs(
    reader: Reader, texts: Sequence[str], progress: Progress = no_progress
) -> list[float]:
    """Returns the log-probability (nats) of whole texts after the prefix, read in windows.

    Args:
      reader: the model.
      texts: the texts.
      progress: told how far it is.
    """
    pairs, owner = [], []
    for number, text in enumerate(texts):
        tokens = reader.tokenizer.encode(text).tolist()
        own = rolling_pairs(tokens, reader.prefix, reader.longest or len(tokens))
        pairs += own
        owner += [number] * len(own)

    def report(done: int) -> None:
        progress(done * len(texts) // len(pairs))

    found = score_continuations(reader.model, reader.params, pairs, reader.streams, report)
    return np.bincount(owner, found.log_prob, len(texts)).tolist()


def rolling_pairs(
    tokens: list[int], prefix: int, longest: int
) -> list[tuple[list[int], list[int]]]:
    """Returns contexts and continuations that predict every token of a text once.

    Each continuation has `longest` tokens, after one token of context. The last has what is left,
    after as many tokens of context as there is room for.

    Args:
      tokens: the text.
      prefix: the token before it.
      longest: number of tokens that the model reads at once.
    """
    pairs = []
    for start in range(0, len(tokens), max(longest, 1)):
        stop = min(start + longest, len(tokens))
        before = tokens[max(stop - longest - 1, 0) : start] if start else [prefix]
        pairs.append((before, tokens[start:stop]))
    return pairs


class Writing(NamedTuple):
    """How a text is continued.

    Attributes:
      until: strings before which the text ends.
      tokens: most tokens.
      sampling: settings of sampling; temperature 0 is greedy.
    """

    until: tuple[str, ...]
    tokens: int
    sampling: Sampling


def writing(settings: Mapping[str, Any], longest: int) -> Writing:
    """Returns how a task wants a text to be continued; greedily unless it says otherwise.

    Args:
      settings: `generation_kwargs` of the task.
      longest: number of tokens that the model reads at once; 0: any number.

    Raises UserError for a setting that is not known, or more tokens than the model has room for.
    """
    for name in settings:
        check_name("generation_kwargs: setting", name, SETTINGS)
    until = settings.get("until") or ()
    usual = min(MOST_WRITTEN, longest // 2) if longest else MOST_WRITTEN
    tokens = next((int(settings[name]) for name in LIMITS if settings.get(name)), usual)
    if longest and tokens >= longest:
        raise UserError(
            f"max_gen_toks={tokens} must be less than the {longest} tokens that the model reads at "
            "once, the context included; give --gen_tokens, or a rolling cache (--window)."
        )
    temperature = float(settings.get("temperature") or 0)
    if settings.get("do_sample"):
        temperature = temperature or 1.0
    elif "do_sample" in settings:
        temperature = 0.0
    sampling = Sampling(
        temperature, int(settings.get("top_k") or 0), float(settings.get("top_p") or 1)
    )
    return Writing((until,) if isinstance(until, str) else tuple(until), tokens, sampling)


def written(
    reader: Reader,
    requests: Sequence[tuple[str, Mapping[str, Any]]],
    progress: Progress = no_progress,
) -> list[str]:
    """Returns what the model writes after texts, up to where each request wants it to end.

    Texts of the same length are continued side by side. A text that leaves no room for what is to
    be written loses its beginning.

    Args:
      reader: the model.
      requests: (context, settings) of each; see `writing`.
      progress: told how far it is.
    """
    groups: dict[tuple[int, Writing], list[int]] = {}
    contexts = []
    for number, (context, settings) in enumerate(requests):
        how = writing(settings, reader.longest)
        tokens = reader.tokenizer.encode_start(context).tolist() or [reader.prefix]
        if reader.longest:
            tokens = tokens[-(reader.longest - how.tokens) :]
        contexts.append(tokens)
        groups.setdefault((len(tokens), how), []).append(number)
    texts, done = [""] * len(requests), 0
    for (_, how), members in groups.items():
        for first in range(0, len(members), TOGETHER):
            some = members[first : first + TOGETHER]
            # Rows that fill up a power of two, so that few programs are compiled.
            filled = some + some[-1:] * ((1 << (len(some) - 1).bit_length()) - len(some))
            prompts = np.array([contexts[i] for i in filled], np.int32)
            for number, text in zip(some, _continued(reader, prompts, how), strict=False):
                texts[number] = text
            done += len(some)
            progress(done)
    return texts


def _continued(reader: Reader, prompts: Int[np.ndarray, "B T"], how: Writing) -> list[str]:
    """Returns continuations of texts of the same length."""
    model, params = reader.model, reader.params
    state = init_state(model.config, len(prompts), model.config.length)
    start = 0
    # In pieces of powers of two, so that few programs serve texts of every length.
    for power in range(prompts.shape[1].bit_length() - 1, -1, -1):
        if (prompts.shape[1] - 1) >> power & 1:
            piece = jnp.asarray(prompts[:, start : start + (1 << power)])
            state, start = prefill(model, params, state, piece), start + (1 << power)
    last, key = jnp.asarray(prompts[:, -1]), jax.random.key(0)
    tokens = np.zeros((len(prompts), 0), np.int32)
    while tokens.shape[1] < how.tokens:
        number = min(CHUNK, how.tokens - tokens.shape[1])
        own = jax.random.fold_in(key, tokens.shape[1])
        state, last, new = generate_chunk(model, how.sampling, number, params, state, last, own)
        tokens = np.concatenate([tokens, np.asarray(new.tokens)], axis=1)
        ended = [ended_text(reader, row, how.until) for row in tokens.tolist()]
        if all(end for _, end in ended):
            break
    return [text for text, _ in ended]


def ended_text(reader: Reader, tokens: list[int], until: Sequence[str]) -> tuple[str, bool]:
    """Returns a text up to its end, and whether it has ended: by a token or a string."""
    stop = next((i for i, token in enumerate(tokens) if token in reader.ends), len(tokens))
    text = reader.tokenizer.decode(tokens[:stop])
    ends = [place for one in until if one and (place := text.find(one)) >= 0]
    return text[: min(ends, default=len(text))], bool(ends) or stop < len(tokens)


def adapter(reader: Reader, progress: Callable[[int, str], Progress] | None = None) -> Any:
    """Returns the model as an `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate`.

    Args:
      reader: the model.
      progress: called with the number and kind of requests, returns what is told of them.

    Raises UserError if the package is not installed.
    """
    try:
        from lm_eval.api.model import LM  # ty: ignore[import-not-found]  # optional
    except ImportError:
        raise UserError(
            'this needs lm-eval, which is not installed: pip install "attest[lm-eval]", or pip '
            "install lm-eval."
        ) from None

    def told(requests: list) -> Progress:
        return progress(len(requests), "requests") if progress else no_progress

    class Adapter(LM):
        def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
            pairs = [request.args for request in requests]
            return continuation_log_probs(reader, pairs, told(requests))

        def loglikelihood_rolling(self, requests: list) -> list[float]:
            texts = [request.args[0] for request in requests]
            return text_log_probs(reader, texts, told(requests))

        def generate_until(self, requests: list) -> list[str]:
            return written(reader, [request.args for request in requests], told(requests))

        @property
        def tokenizer_name(self) -> str:
            return "attest"

    return Adapter()
