"""Makes a run of a pretrained model: a Hugging Face directory with safetensors.

python -m research.import_model --from=gpt2 --workdir=runs/gpt2
python -m research.generate --workdir=runs/gpt2 --prompt="Attention is"
python -m research.evaluate --workdir=runs/gpt2 --input=novel.txt --tokens=2048 --window=256

An encoder-decoder becomes a run that research.translate takes, and a BERT with a head for classes
one that research.classify takes.

The directory has config.json, model.safetensors (or several files with an index) and, for text,
tokenizer.json; `hf download openai-community/gpt2 --local-dir gpt2` makes one. What the model needs
and is not here is refused by name, as is a tensor that is missing, superfluous or of another shape.
"""

from pathlib import Path

from absl import flags

from research.command_line import run
from research.errors import UserError
from research.messages import tell
from research.runs.bucket import open_workdir

flags.DEFINE_string("from", None, "Directory of the Hugging Face model.", required=True)
flags.DEFINE_string("workdir", None, "Directory of the run to write.", required=True)
flags.DEFINE_integer(
    "length", 0, "Positions of the model; 0: as config.json says, 4,096 at most.", lower_bound=0
)
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the activations.")
flags.DEFINE_string("data", "", "A corpus of research.prepare with the model's tokenizer.")
flags.DEFINE_list("ignore", [], "Keys of config.json that do not change what the model computes.")


def main() -> None:
    """Writes the run and says what it is."""
    from research.pretrained.importing import import_model

    options = flags.FLAGS
    workdir = open_workdir(options.workdir)
    if options.data and not Path(options.data).is_dir():
        raise UserError(f"--data={options.data} is no directory; research.prepare writes one.")
    found = import_model(
        Path(str(options["from"].value)),
        workdir,
        options.length,
        options.dtype,
        options.data,
        options.ignore,
    )
    cut = f" of {found.trained_length:,}" if found.length < found.trained_length else ""
    text = "" if found.tokenizer else ", no tokenizer"
    tell(
        f"{workdir}: {found.family}, {found.parameters:,} parameters, {found.length:,}{cut} "
        f"positions{text}"
    )


if __name__ == "__main__":
    run(main)
