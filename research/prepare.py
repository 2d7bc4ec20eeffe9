r"""Turns documents into token shards, on which task.name=tokens trains.

python -m research.prepare --input=data/*.jsonl.gz --tokenizer=bpe:32768 --output=data/web
python -m research.prepare --input=hf:roneneldan/TinyStories --tokenizer=tokenizer.json \
    --output=data/stories

An interrupted command goes on when it is started again; a finished one does nothing.
"""

import os
import sys
from pathlib import Path

from absl import flags

from research.command_line import run
from research.errors import UserError
from research.messages import progress_line, tell

flags.DEFINE_multi_string(
    "input",
    None,
    "File or pattern, tinyshakespeare, or hf:NAME[:CONFIG[:SPLIT]] for the Hugging Face Hub; may "
    "be repeated. .jsonl, .ndjson and .json: JSON lines; .parquet; others: text. All but parquet "
    "may end in .gz or .zst.",
    required=True,
)
flags.DEFINE_string("output", None, "Directory of the shards.", required=True)
flags.DEFINE_string(
    "tokenizer",
    None,
    "Path of a tokenizer.json of the tokenizers library, bpe:N (N tokens, trained on the training "
    "documents) or bytes.",
    required=True,
)
flags.DEFINE_string("field", "text", "Field of JSON lines, or column, that has the text.")
flags.DEFINE_string(
    "separator", "", r"What stands between documents of text files; \n is a line end. None: a file."
)
flags.DEFINE_string("end_token", "", "Token after every document; found by convention if empty.")
flags.DEFINE_float(
    "validation",
    0.01,
    "Fraction of the documents, by a hash of their text, that are held out.",
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_multi_string("validation_input", [], "Files to hold out, in place of a fraction.")
flags.DEFINE_integer("shard_tokens", 100_000_000, "Tokens of a shard.", lower_bound=1)
flags.DEFINE_enum("dtype", "auto", ["auto", "uint16", "uint32"], "Type of the tokens on disk.")
flags.DEFINE_integer("processes", 0, "Processes that encode; 0: one per core.", lower_bound=0)


def main() -> int:
    """Prepares the shards and says how many tokens they have; returns 130 after Ctrl-C."""
    options = flags.FLAGS
    from research.tasks.tokens.documents import find_sources
    from research.tasks.tokens.preparing import Totals, prepare
    from research.tasks.tokens.request import Request

    output = Path(options.output).expanduser()
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output} is a file; give a directory.")
    request = Request(
        find_sources("input", options.input),
        find_sources("validation_input", options.validation_input),
        field=options.field,
        separator=options.separator.replace("\\n", "\n"),
        tokenizer=options.tokenizer,
        end_token=options.end_token,
        validation=options.validation,
        shard_tokens=options.shard_tokens,
        dtype=options.dtype,
    )
    line = progress_line()

    def report(done: Totals, seconds: float) -> str:
        rate = done.bytes / 1e6 / max(seconds, 1e-9)
        return (
            f"{done.read}/{done.sources} inputs, {done.bytes / 1e6:,.1f} MB, {rate:,.1f} MB/s, "
            f"{done.documents:,} documents, {done.tokens:,} tokens"
        )

    try:
        manifest, known = prepare(
            request,
            output,
            options.processes or os.cpu_count() or 1,
            ["python", "-m", "research.prepare", *sys.argv[1:]],
            lambda done: line(lambda seconds: report(done, seconds), done.read == done.sources),
        )
    except KeyboardInterrupt:
        tell("stopped; the same command goes on")
        return 130
    for split, counts in manifest["splits"].items():
        tell(
            f"{split}: {counts['tokens']:,} tokens of {counts['documents']:,} documents, "
            f"{len(counts['shards'])} shards"
        )
    if empty := manifest["empty_documents"]:
        tell(f"{empty:,} documents without text were skipped")
    print(f"{output} was prepared before; nothing was done" if known else f"wrote {output}")
    return 0


if __name__ == "__main__":
    run(main)
