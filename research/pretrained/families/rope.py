"""Reads rotary position encodings from config.json, as transformers 4 and 5 write them."""

from collections.abc import Mapping
from typing import Any

from research.errors import UserError
from research.pretrained.config_reader import ConfigReader

BASE = 10000.0


def rope_options(
    read: ConfigReader, layers: str = "", fraction: float = 1.0, base: float = BASE
) -> dict[str, Any]:
    """Returns our options of RoPE.

    Args:
      read: reads config.json.
      layers: type of layers, where "rope_parameters" has several, such as "full_attention".
      fraction: share of the channels that turns, unless "rope_parameters" says it.
      base: base of the frequencies, unless config.json says it.

    Raises UserError for a scaling that we do not have.
    """
    said = dict(read("rope_parameters", {}))
    if said and layers:
        if not isinstance(said.get(layers), Mapping):
            raise UserError(f"config.json has rope_parameters={said}, which lacks {layers!r}.")
        said = dict(said[layers])
    elif not said:  # as transformers 4 wrote it
        said = dict(read("rope_scaling", {})) | {"rope_theta": read("rope_theta", base)}
    read.skip("rope_scaling", "rope_theta")
    kind = said.pop("rope_type", None) or said.pop("type", None) or "default"
    said.pop("type", None)
    found: dict[str, Any] = {
        "position": "rope",
        "rope_base": float(said.pop("rope_theta", base)),
        "rope_fraction": float(said.pop("partial_rotary_factor", fraction)),
    }
    found |= _scaling(read, kind, said)
    # None says nothing; what is left over would change the frequencies.
    if left := {key: value for key, value in said.items() if value is not None}:
        key, value = next(iter(left.items()))
        raise UserError(
            f"config.json has {key}={value!r} in the parameters of RoPE of type {kind!r}, which "
            "nothing here reads."
        )
    return found


def _scaling(read: ConfigReader, kind: str, said: dict[str, Any]) -> dict[str, Any]:
    """Returns our options of a scaling, and takes what it reads out of `said`."""
    if kind in ("default", "dynamic"):  # the same up to the trained length
        said.pop("factor", None)
        return {}
    if kind not in ("linear", "yarn", "llama3"):
        raise UserError(
            f"config.json has RoPE of type {kind!r}; default, dynamic, linear, yarn and llama3 can "
            "be read."
        )
    found = {"rope_scaling": kind, "rope_factor": float(said.pop("factor"))}
    if kind == "linear":
        return found
    longest = read("max_position_embeddings")
    original = said.pop("original_max_position_embeddings", None) or longest
    found["rope_original_length"] = int(original)
    if kind == "llama3":
        found["rope_low_freq_factor"] = float(said.pop("low_freq_factor"))
        found["rope_high_freq_factor"] = float(said.pop("high_freq_factor"))
        return found
    for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0), ("truncate", True)):
        if (said.get(key) if said.get(key) is not None else default) == default:
            said.pop(key, None)
    return found


def check_length(config: Mapping[str, Any], length: int) -> None:
    """Raises UserError if RoPE changes with the length before so many positions.

    Of type "dynamic" (Peng et al. 2023 (YaRN), section 3.3) all frequencies fall with each token
    beyond the trained length. Keys in a cache have turned by those of earlier tokens, so that what
    is decoded would not be what a whole sequence gives, and no token's outputs would stay the same.
    """
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    longest = config.get("max_position_embeddings")
    kinds = [one.get("rope_type", one.get("type")) for one in (said, *said.values()) if _maps(one)]
    if "dynamic" in kinds and longest and length > longest:
        raise UserError(
            f"--length={length}: RoPE of type 'dynamic' changes all frequencies with the length "
            f"beyond {longest:,} positions, which keys in a cache cannot follow; use at most "
            f"{longest}, and train.init_from with model.rope_scaling='ntk' or 'yarn' for more."
        )


def _maps(value: Any) -> bool:
    return isinstance(value, Mapping)


def write_rope(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns "rope_parameters" for options of ours: the inverse of `rope_options`.

    Raises UserError for a scaling that transformers does not have.
    """
    kind = options.get("rope_scaling", "none")
    if kind == "ntk":
        raise UserError("model.rope_scaling='ntk': transformers has no such scaling; it has yarn.")
    found: dict[str, Any] = {
        "rope_theta": options["rope_base"],
        "rope_type": "default" if kind == "none" else kind,
    }
    if options.get("rope_fraction", 1.0) != 1.0:
        found["partial_rotary_factor"] = options["rope_fraction"]
    if kind != "none":
        found["factor"] = options["rope_factor"]
    if kind in ("yarn", "llama3"):
        found["original_max_position_embeddings"] = options["rope_original_length"]
    if kind == "llama3":
        found["low_freq_factor"] = options["rope_low_freq_factor"]
        found["high_freq_factor"] = options["rope_high_freq_factor"]
    return found
