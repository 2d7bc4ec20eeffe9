"""Writes the model of a run as a Hugging Face directory, which transformers loads.

python -m research.export_model --workdir=runs/text --output=exported

A run that was imported comes back bit by bit. A model that was trained here can be written if a
family has all that it is made of: GPT-2 has learned positions, LayerNorm, biases and GELU's tanh
form; Llama and its kin RoPE, RMSNorm and SwiGLU. T5, BART, Marian and BERT are families too. The
message says what does not fit.
"""

from pathlib import Path

from absl import flags

from research.command_line import run
from research.messages import tell
from research.runs.bucket import open_workdir

flags.DEFINE_string("workdir", None, "Directory of a run.", required=True)
flags.DEFINE_string("output", None, "Directory to write.", required=True)
flags.DEFINE_string("family", "", "Family to write it as, such as gpt2; empty: one that fits.")


def main() -> None:
    """Writes the directory and says as what."""
    from research.pretrained.exporting import export_model
    from research.training.runs import load_run_config, open_run

    options = flags.FLAGS
    workdir = open_workdir(options.workdir)
    opened = open_run(
        workdir, load_run_config(workdir, ("text", "tokens", "translation", "sentiment"))
    )
    family = export_model(opened, Path(options.output), options.family)
    tell(f"{options.output}: {family}")


if __name__ == "__main__":
    run(main)
