"""Writes the report for a paper: a methods paragraph and tables in LaTeX, to include by \\input."""

from collections.abc import Sequence
from typing import Any

from research.report.cards import cards
from research.report.columns import (
    Column,
    budget_columns,
    main_columns,
    nonempty_columns,
    text_rows,
    tuning_columns,
)
from research.report.formatting import typographic
from research.report.methods import methods
from research.report.summary import Summary

ON_THE_PAGE = ("when solved", "steps to solve", "rise time", "not compared because")
"""Columns of the main table that do not fit into a column of text."""
LONG = 40
"""Number of rows from which a table may break across pages."""
SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "−": "$-$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "→": r"$\rightarrow$",
    "–": "--",
    "…": r"\dots{}",
    "“": "``",
    "”": "''",
    "⚠": r"$^{\ast}$",
}
"""Replacements for characters with a special meaning in LaTeX, or missing from its fonts."""
PREAMBLE = r"""% Made by python -m research.report --latex; made again, it is written over.
% Needs \usepackage[T1]{fontenc}, \usepackage{booktabs} and \usepackage{longtable}.
% Names in scripts that are not Latin need XeLaTeX or LuaLaTeX."""


def escape(text: Any) -> str:
    """Escapes a text for LaTeX and puts it on one line."""
    return "".join(SPECIAL.get(character, character) for character in " ".join(str(text).split()))


def latex(summary: Summary) -> str:
    """Returns report.tex: methods, and tables of results, claims, budget and tuning.

    All text from the experiment or its runs is escaped.
    """
    study = summary.study
    blocks = [
        PREAMBLE,
        f"\\paragraph{{{escape(study.experiment.question)}}}\n{escape(summary.takeaway)}",
        f"\\paragraph{{Methods.}}\n{escape(typographic(methods(study)))}",
        _columns(
            "results",
            f"Test of “{study.experiment.question}”: mean over seeds, with the lowest and the "
            "highest.",
            [column for column in main_columns(study) if column.title not in ON_THE_PAGE],
            summary.rows,
        ),
        _claims(summary),
        _budget(summary),
    ]
    if summary.tuning:
        columns = [column for column in tuning_columns(study) if column.title != "runs"]
        blocks.append(_columns("tuning", "Chosen by tuning.", columns, summary.tuning))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _columns(name: str, caption: str, columns: Sequence[Column], rows: Sequence[Any]) -> str:
    columns = nonempty_columns(columns, rows)
    kinds = "".join(_kind(column, rows) for column in columns)
    head = [column.title for column in columns]
    return _table(name, caption, kinds, head, text_rows(columns, rows))


def _budget(summary: Summary) -> str:
    """Returns the budget table; costs that are equal for all arms are only in its caption."""
    columns, rows = nonempty_columns(budget_columns(summary.study), summary.budget), summary.budget
    texts = {column.title: {column.text(row) for row in rows} for column in columns}
    alike = [t for t, found in texts.items() if len(found) == 1] if len(rows) > 1 else []
    said = "; ".join(f"{title}: {next(iter(texts[title]))}" for title in alike)
    caption = "What each arm costs; × is the ratio to the reference arm."
    if said:
        caption += f" The same for all: {said}."
    columns = [column for column in columns if column.title not in alike]
    return _columns("budget", caption, columns, rows)


def _kind(column: Column, rows: Sequence[Any]) -> str:
    if column.kind == "text" and max((len(column.text(row)) for row in rows), default=0) > 24:
        return r"p{0.25\linewidth}"
    return "l" if column.kind in ("text", "arm") else "r"


def _claims(summary: Summary) -> str:
    if not summary.judgements:
        return ""
    rows = [
        [f"{card.text} ({card.source})" if card.source else card.text, card.effect, card.verdict]
        for card in cards(summary)
    ]
    kinds = r"p{0.36\linewidth}p{0.44\linewidth}l"
    return _table("claims", "Claims and verdicts.", kinds, ["claim", "measured", "verdict"], rows)


def _table(
    name: str, caption: str, kinds: str, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """Returns a table; `kinds`, the argument of tabular, is the only argument not escaped."""
    described = f"\\caption{{{escape(caption)}}}\\label{{tab:{name}}}"
    heading = f"\\toprule\n{_line(head)}\n\\midrule"
    body = "\n".join(map(_line, rows))
    if len(rows) > LONG:
        return (
            f"{{\\footnotesize\n\\begin{{longtable}}{{{kinds}}}\n{described} \\\\\n{heading}\n"
            f"\\endhead\n\\bottomrule\n\\endfoot\n{body}\n\\end{{longtable}}}}"
        )
    return (
        f"\\begin{{table}}\n\\centering\\footnotesize\\setlength{{\\tabcolsep}}{{4pt}}\n{described}\n\\begin{{tabular}}{{{kinds}}}\n"
        f"{heading}\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}"
    )


def _line(cells: Sequence[str]) -> str:
    # LaTeX would parse a leading bracket or star as an argument of the preceding \\.
    return (
        " & ".join(f"{{}}{escape(cell)}" if cell[:1] in "[*" else escape(cell) for cell in cells)
        + r" \\"
    )
