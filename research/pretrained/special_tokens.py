"""Finds which tokens of a pretrained model are no text: in its config.json and tokenizer.json."""

from collections.abc import Callable, Mapping
from typing import Any

from research.errors import UserError
from research.pretrained.config_reader import ConfigReader
from research.pretrained.family import Family
from research.tasks.text.tokenizer import from_json

IDS = {
    "pad_token_id": "pad",
    "decoder_start_token_id": "start",
    "eos_token_id": "end",
    "forced_bos_token_id": "first",
}
"""{key of config.json: field of `SpecialTokens`}."""
FORCED = "force_bos_token_to_be_generated"
"""What older files of BART have in place of "forced_bos_token_id"."""
TRANSLATION = "translation"


def sequence_tokens(pad: int, start: int, end: int) -> Callable[[ConfigReader], dict[str, int]]:
    """Returns `Family.special` of an encoder-decoder, from ids for what config.json lacks."""
    defaults = {"pad": pad, "start": start, "end": end}

    def special(read: ConfigReader) -> dict[str, int]:
        found = {}
        for key, name in IDS.items():
            if not read.has(key) and name not in defaults:
                continue
            value = read(key, defaults.get(name))
            if not isinstance(value, int):
                raise UserError(f"config.json has {key}={value!r}; it must be the id of one token.")
            found[name] = value
        if read(FORCED, False) and "first" not in found:
            found["first"] = read("bos_token_id")
        return found

    return special


def special_tokens(
    family: Family,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    vocab_size: int,
    tokenizer: str,
) -> dict[str, Any]:
    """Returns what corpus.json has of the special tokens of a model: fields of `SpecialTokens`.

    Args:
      family: its family.
      config: config.json.
      generation: generation_config.json, whose ids are those that count; {}: there is none.
      vocab_size: number of tokens of the model.
      tokenizer: tokenizer.json; "": there is none.

    Raises UserError for an id that the model does not have.
    """
    said = {key: generation[key] for key in IDS if generation.get(key) is not None}
    found: dict[str, Any] = family.special(ConfigReader({**config, **said}))
    for key, name in IDS.items():
        if not found.get(name, 0) < vocab_size:
            raise UserError(
                f"config.json has {key}={found[name]}; the model has {vocab_size:,} tokens."
            )
    # Sources of every family end so; tokenizer.json says it too if it adds tokens at all.
    found["after"] = [found["end"]] if family.task == TRANSLATION else []
    if not tokenizer:
        return found
    read = from_json(tokenizer)
    unknown = read.library.token_to_id(getattr(read.library.model, "unk_token", None) or "")
    if unknown is not None:
        found["unknown"] = unknown
    if read.library.post_processor is None:
        return found
    before, after = read.around
    return found | {"before": list(before), "after": list(after)}
