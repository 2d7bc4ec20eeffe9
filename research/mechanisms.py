"""Writes docs/mechanism-list.md, the page of everything that is registered.

    python -m research.mechanisms --out=docs/mechanism-list.md

Everything on it is read off the registry: names, sources, what is computed, and numbers of the
mechanism itself (parameters, decoding state) at one stated size.
"""

import math
from pathlib import Path
from typing import Any

from absl import flags

from research.attention import registry
from research.attention.implementations.attend import IMPLEMENTATIONS, unsupported_reason
from research.attention.mixers.attention_options import AttentionOptions
from research.attention.mixers.mixer import Mixer, state_bytes
from research.attention.parts.part_options import summary
from research.attention.parts.tables import TABLES
from research.attention.spec import MixerSpec, make_mixer, mixer_spec
from research.command_line import run
from research.drawing.markdown import table
from research.options import declarations, has_to_be_set

flags.DEFINE_string("out", "docs/mechanism-list.md", "The file to write.")

# The size at which parameters and states are counted.
SIZE: dict[str, Any] = {"width": 256, "num_heads": 4, "max_length": 1024}
NEEDED = {"window": 64, "prefix_length": 64, "dilation": 4, "stride": 32, "global_tokens": 4}

HEAD = """# List of mechanisms

Everything that can be chosen from a config, by the key and the name that choose it. This page is
written by `python -m research.mechanisms` from the registry; a test keeps it true.

T queries, S keys, H heads, K key heads, D channels of a head, Dv those of its values where they can
differ (D by default), M width of the model, w window, C latent, R rotated channels. A config key is
set as `--config.model.KEY=NAME`, in a config file, or per layer in `model.pattern`. Parameters and
bytes of decoding state are of one layer at a width of 256 with 4 heads of 64 and 1,024 tokens,
float32. *Used in*: self-attention, cross-attention, the decoder of a recurrent network.
"""


def page() -> str:
    """Returns the page as Markdown."""
    sections = [HEAD, mixers(), *(parts(field) for field in TABLES), switches()]
    return "\n".join(sections)


def mixers() -> str:
    """Returns the section of `model.mixer`."""
    header = ("name", "computes", "source", "time", "state", "parameters", "state bytes")
    rows = []
    for name, entry in registry.MIXERS.items():
        mixer = make_mixer(**SIZE, mixer=name)
        size = (
            f"{state_bytes(mixer, 1, 1024, 'float32'):,}" if entry.causal else "none: looks ahead"
        )
        rows.append(
            (
                f"`{name}`",
                summary(entry),
                entry.source,
                entry.time,
                entry.state,
                f"{count(mixer):,}",
                size,
                ", ".join(entry.implementations),
                ", ".join(entry.where),
            )
        )
    text = "\n## Mixers: `model.mixer`\n\nWhat moves information between positions.\n\n"
    return text + table((*header, "implementations", "used in"), rows)


def parts(field: str) -> str:
    """Returns the section about one kind of part of softmax attention."""
    plain = count(make_mixer(**SIZE))
    rows = []
    for name, part in TABLES[field].items():
        options = declarations(part)
        needed = [key for key, declared in options.items() if has_to_be_set(declared)]
        chosen = {field: name} | {key: NEEDED.get(key, 16) for key in needed}
        spec = mixer_spec(**SIZE, **chosen)
        learned = count(spec.make()) - plain
        rows.append(
            (
                f"`{name}`",
                summary(part),
                part.source,
                ", ".join(f"`{key}`" for key in options) or "-",
                f"{learned:+,}" if learned else "0",
                ", ".join(able(spec)),
                ", ".join(part.where),
            )
        )
    header = ("name", "computes", "source", "options", "parameters", "implementations", "used in")
    return f"\n## {TITLES[field]}: `model.{field}`\n\n{NOTES[field]}\n\n{table(header, rows)}"


TITLES = {
    "score": "Scores",
    "mask": "Masks",
    "normalizer": "Normalizers",
    "position": "Positions",
}
NOTES = {
    "score": "How well a query and a key match. Parameters are relative to `scaled_dot`.",
    "mask": 'Which keys a query sees. Names combine: `"causal & bigbird"`, '
    '`"window | causal & global"` (a window that also keeps sink tokens).',
    "normalizer": "They map scores to weights.",
    "position": "How positions enter. The model applies the first three to its input.",
}


def switches() -> str:
    """Returns the section of other options of softmax attention that are mechanisms."""
    rows = [
        (f"`model.{name}`", o.help, o.source, ", ".join(o.where or ("self", "cross", "decoder")))
        for name, o in ((n, declared.option) for n, declared in registry.MECHANISM_OPTIONS.items())
    ]
    return "\n## Other options of softmax attention\n\n" + table(
        ("key", "computes", "source", "used in"), rows
    )


def able(spec: MixerSpec) -> list[str]:
    """Returns the names of the implementations that compute a mixer's mechanism exactly."""
    assert isinstance(spec.options, AttentionOptions)
    mechanism = spec.options.mechanism(spec.context)
    return [name for name in IMPLEMENTATIONS if not unsupported_reason(name, mechanism)]


def count(mixer: Mixer) -> int:
    """Returns the number of parameters of a mixer."""
    return sum(math.prod(p.shape) for p in mixer.parameters().values())


def main() -> None:
    """Writes the page."""
    path = Path(flags.FLAGS.out)
    path.write_text(page())
    print(f"wrote {path}")


if __name__ == "__main__":
    run(main)
