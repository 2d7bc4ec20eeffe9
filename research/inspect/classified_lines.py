"""Formats the predictions for classified texts, as tab-separated rows and for the terminal."""

from rich.console import Console
from rich.text import Text

from research.interpret.classification import Classified

LISTED = 5
"""Number of words to list below a text with their attributions."""


def visible(text: str, spaces: bool = True) -> str:
    """Returns the text with unprintable characters replaced by Python escapes.

    Args:
      text: any text.
      spaces: whether to keep spaces instead of escaping them.
    """

    def one(character: str) -> str:
        plain = character.isprintable() and (spaces or character != " ")
        if plain:
            return character
        return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"

    return "".join(map(one, text))


def tab_separated(found: Classified, text: str) -> str:
    """Returns label, probability, text, and words with attributions, separated by tabs."""
    words = (
        f"{visible(piece.strip(' '), spaces=False)}:{value:+.4f}"
        for piece, value in zip(found.pieces, found.attributions, strict=True)
    )
    label = visible(found.label)
    return f"{label}\t{found.probability:.4f}\t{visible(text)}\t{' '.join(words)}"


def show(found: Classified, by: str) -> None:
    """Prints the prediction for a text to the terminal, with words coloured by attribution."""
    # Texts are untrusted: keep rich from interpreting markup or emoji, or highlighting words.
    console = Console(highlight=False, markup=False, emoji=False)
    largest = max(map(abs, found.attributions)) or 1.0
    line = Text(f"{visible(found.label)} {found.probability:.1%}  ", style="bold")
    # BPE pieces include their leading spaces.
    spaced = any(piece.startswith(" ") for piece in found.pieces)
    for piece, value in zip(found.pieces, found.attributions, strict=True):
        word = visible(piece)
        gap = "" if spaced else " "
        line.append(word, style=colour(value / largest)).append(gap, style="not bold")
    console.print(line, soft_wrap=True)
    order = sorted(range(len(found.pieces)), key=lambda i: -abs(found.attributions[i]))
    listed = ", ".join(
        f"{visible(found.pieces[i].strip(' '))} {found.attributions[i]:+.2f}"
        for i in order[:LISTED]
    )
    console.print(Text(f"  {by}: {listed}", style="dim"), soft_wrap=True)


def colour(part: float) -> str:
    """Returns the style of a word whose attribution is `part`, -1 to 1, of the largest one."""
    if abs(part) < 0.1:
        return "not bold"
    shade = round(abs(part) * 160)
    rgb = f"rgb(0,{shade},0)" if part > 0 else f"rgb({shade},0,0)"
    return f"not bold white on {rgb}"
