"""Every command in the README and in docs/ runs, and its experiment is one."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from research.ablation.loading import load_experiment
from research.tasks.text.tokenizer import make_tokenizer
from tests.checkpoints import CONFIG, write_gpt2
from tests.commands import ROOT, run_commands

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
# What the tests cannot run here: they install software or need some, or they run these tests.
ELSEWHERE = (
    "make ",
    "cp ",
    "hf ",
    ".venv/bin/pip ",
    ".venv/bin/python -m benchmarks.",
    ".venv/bin/python -m research.lm_evaluation ",
)
# Enough to see that a command works; the numbers on the pages would take minutes.
SHORT = {
    "research.train": [
        "--config.train.steps=2",
        "--config.train.eval_every=1",
        "--config.train.eval_batches=1",
        "--config.task.batch_size=2",
    ],
    "research.costs": ["--rounds=1"],
    "research.generate": ["--tokens=3"],
    "research.launch": ["--dry_run"],
}
# Commands that read runs.
READERS = tuple(
    f"research.{name}"
    for name in (
        "classify",
        "evaluate",
        "export_model",
        "generate",
        "heads",
        "inspect",
        "needle",
        "transcribe",
        "translate",
    )
)
TINY_RECURRENT = ["--config.model.width=8", "--config.model.embedding_width=8"]
TINY_TRANSFORMER = [
    "--config.model.width=8",
    "--config.model.feedforward=8",
    "--config.model.num_layers=1",
]
TINY_CORPUS = ["--config.task.bpe_vocab_size=300", "--config.task.buckets=1"]
# What the training of a config needs besides; {data} is the directory of `write_data`.
OF_CONFIG = {
    "configs/text.py": [*TINY_TRANSFORMER, "--config.task.path={data}/text.txt"],
    "configs/translation.py": TINY_TRANSFORMER + TINY_CORPUS,
    "configs/translation_recurrent.py": TINY_RECURRENT + TINY_CORPUS,
    "configs/transduction.py": [
        *TINY_RECURRENT,
        "--config.task.test_lengths=(5,)",
        "--config.task.test_sequences=1",
    ],
    "configs/speech.py": [
        "--config.model.width=8",
        "--config.task.num_mels=8",
        "--config.task.buckets=1",
        "--config.task.test_lengths=(1,)",
        "--config.task.test_sequences=4",  # one is looked at by its number
        "--config.model.encoder_layers=1",
        "--config.decoding.beam=2",
    ],
    "configs/sentiment.py": TINY_RECURRENT,
    "configs/rule.py": TINY_RECURRENT,
    "configs/recall.py": ["--config.model.width=8"],
    "configs/induction.py": ["--config.model.width=8"],
}
RECORDINGS = "--config.task.path={data}/recordings.tsv"
REVIEWS = "--config.task.path={data}/{{split}}.tsv"
SENTENCES = "--config.task.path={data}/{{split}}.{{language}}"


def commands() -> list[str]:
    """Returns the shell commands of the pages, each once, without comments and line breaks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    stripped = (line.split(" #")[0].strip() for line in lines if line.strip())
    return list(dict.fromkeys(re.sub(r"\s+", " ", line) for line in stripped))


def python_blocks() -> list[str]:
    """Returns the Python code of the pages."""
    return re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def write_data(folder: Path) -> None:
    """Writes a text and a small parallel corpus, in place of those that are downloaded."""
    folder.mkdir()
    (folder / "text.txt").write_text("ROMEO: a rose by any other name would smell sweet.\n" * 400)
    words = {"de": ("Ein Hund", "Zwei Kinder", "im Schnee"), "en": ("a dog", "two", "in the snow")}
    for split, number in (("train", 24), ("val", 3), ("test", 3)):
        for language, of in words.items():
            lines = (f"{of[i % 3]} {of[i // 3 % 3]} {of[i // 9 % 3]}.\n" for i in range(number))
            (folder / f"{split}.{language}").write_text("".join(lines), encoding="utf-8")
    for split in ("train", "dev", "test"):
        rows = (f"a {('fine', 'dull')[i % 2]} film\t{i % 2}\n" for i in range(6))
        (folder / f"{split}.tsv").write_text("".join(rows))
    documents = (f'{{"text": "Document {i} is about a rose."}}\n' for i in range(200))
    (folder / "documents.jsonl").write_text("".join(documents))
    (folder / "openwebtext").mkdir()
    for split in ("train", "val"):
        (np.arange(5000, dtype="<u2") % 50257).tofile(folder / "openwebtext" / f"{split}.bin")
    tokenizer = make_tokenizer("bpe", ["a rose"], vocab_size=256)
    tokenizer.library.add_special_tokens(["<|endoftext|>"])
    size = tokenizer.library.get_vocab_size()
    write_gpt2(folder.parent / "gpt2", CONFIG | {"vocab_size": size}, tokenizer=tokenizer)
    (folder / "reviews.txt").write_text("a fine film\nso dull\n")
    lines = []
    for i in range(24):
        sound = 0.1 * np.sin(np.arange(2400) * (0.2 + 0.1 * (i % 3)))
        soundfile.write(folder / f"{i}.wav", sound, 8000)
        split = "train" if i < 16 else "validation" if i < 20 else "test"
        lines.append(f"{i}.wav\t{('low', 'mid', 'high')[i % 3]}\t\t{split}\n")
    (folder / "recordings.tsv").write_text("".join(lines))


def arguments_of(command: str, tmp_path: Path) -> tuple[str, list[str]]:
    """Returns the module and arguments of a command, made short, with files below tmp_path."""
    _, _, module, *arguments = shlex.split(command.split(" > ")[0])
    places = r"^(--\S+[=:])?(runs|data|gpt2)\b"
    arguments = [re.sub(places, rf"\1{tmp_path}/\2", a) for a in arguments]
    arguments = [f"{tmp_path}/data/0.wav" if a == "recording.wav" else a for a in arguments]
    arguments = [a.replace("=exported", f"={tmp_path}/exported") for a in arguments]
    arguments = [a.replace("=novel.txt", f"={tmp_path}/data/text.txt") for a in arguments]
    if module == "research.evaluate":
        arguments = [re.sub(r"^--tokens=\d+$", "--tokens=100", a) for a in arguments]
        arguments = [re.sub(r"^--stride=\d+$", "--stride=20", a) for a in arguments]
    arguments += SHORT.get(module, [])
    config = next((a.removeprefix("--config=") for a in arguments if "--config=" in a), "")
    if module == "research.train":
        extra = OF_CONFIG.get(config, [])
        if "--config.task.name=tokens" in arguments:
            extra = TINY_TRANSFORMER
        if "translation" in config and not any("task.path" in a for a in arguments):
            extra = [*extra, SENTENCES]
        if "speech" in config and not any("task.path" in a for a in arguments):
            extra = [*extra, RECORDINGS]
        if "sentiment" in config and not any("task.path" in a for a in arguments):
            extra = [*extra, REVIEWS]
        if "--config.task.join=()" in arguments:
            # Recordings as they are have no strings to test.
            extra = [a for a in extra if not a.startswith("--config.task.test_")]
        arguments += [a.format(data=tmp_path / "data") for a in extra]
    return module, arguments


def workdir_of(arguments: list[str]) -> str:
    """Returns the flag that names the directory of a run; "" where there is none."""
    return next((a for a in arguments if a.startswith("--workdir=")), "")


def example(tmp_path: Path) -> Path:
    """Returns the README's experiment as a file, with the imports of the one it is copied from."""
    copied = (ROOT / "experiments" / "attention_type.py").read_text(encoding="utf-8")
    imports = "\n".join(line for line in copied.splitlines() if line.startswith("from "))
    (code,) = (block for block in python_blocks() if block.startswith("experiment"))
    path = tmp_path / "mine.py"
    path.write_text(f"{imports}\n\n{code}", encoding="utf-8")
    return path


def test_the_example_is_an_experiment(tmp_path):
    assert len(load_experiment(example(tmp_path)).arms) == 3


def test_every_file_that_is_linked_exists():
    for page in (*PAGES, *ROOT.glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_command_is_known_to_make_or_runs_below():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands():
        if command.startswith("make "):
            assert command.split()[1] in targets
        else:
            assert command.startswith((*ELSEWHERE, ".venv/bin/python -m research.")), command


@pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["first", "every"]
)
def test_the_commands_run(tmp_path, every):
    """Every command runs; without `every`, one run is trained, the others have random weights."""
    write_data(tmp_path / "data")
    mine = example(tmp_path)
    trained = False
    cases, piped = [], []
    for command in commands():
        if command.startswith(ELSEWHERE):
            continue
        module, arguments = arguments_of(command, tmp_path)
        arguments = [a.replace("experiments/mine.py", str(mine)) for a in arguments]
        if "<" in arguments:
            piped.append((module, arguments))
            continue
        if "--distributed" in arguments or "--num_processes=2" in arguments:
            continue  # waits for the others; tests/parallel runs several
        if module == "research.plan" and any("experiment" in a for a in arguments):
            continue  # long sequences take a minute; tests/cloud plans this one among the slow
        if module in ("research.sweep", "research.report") and "--dry_run" not in arguments:
            continue  # their runs take minutes; tests/ablation runs both on a smaller experiment
        if module == "research.train":
            module = "research.train" if every or not trained else "tests.resolve"
            trained = True
        cases.append((module, arguments))
    cases.sort(key=lambda case: case[0] in READERS)  # a page may read the run of another page
    assert len(cases) >= 30 and {module for module, _ in cases} >= {"research.train"}
    read = {workdir_of(arguments) for module, arguments in cases if module in READERS}
    for module, arguments in cases:
        if module == "tests.resolve" and workdir_of(arguments) in read:
            arguments.append("--write")
    for case, outcome in zip(cases, run_commands(cases), strict=True):
        assert outcome.code == 0, f"{case}\n{outcome.err}"
    ((module, (*arguments, _, path)),) = piped
    (outcome,) = run_commands([(module, arguments)], stdin=path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("0 ||| "), outcome.out


@pytest.mark.slow
def test_the_example_of_a_mechanism_is_picked_up_by_everything(tmp_path):
    """One file and one line, in a copy of the project."""
    for name in ("research", "configs", "docs", "experiments", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("results"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (code,) = (block for block in python_blocks() if block.startswith("# research/"))
    (tmp_path / code.splitlines()[0][2:]).write_text(code)
    registry = tmp_path / "research" / "attention" / "registry.py"
    (line,) = re.findall(r"`(\"moving_average\": MovingAverageOptions,)`", TEXT)
    source = "research.attention.mixers.moving_average"
    table = "MIXERS: dict[str, type[MixerOptions]] = {"
    text = registry.read_text().replace(table, f"{table}\n    {line}")
    registry.write_text(f"from {source} import MovingAverageOptions\n{text}")

    def run(*arguments):
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        return done.returncode, done.stdout + done.stderr

    code, said = run("pytest", "-k", "moving_average", "tests/attention", "tests/models")
    assert code == 0, said[-3000:]
    assert int(re.findall(r"(\d+) passed", said)[0]) >= 9
    assert run("research.mechanisms")[0] == 0
    assert "| `moving_average` |" in (tmp_path / "docs" / "mechanism-list.md").read_text()
    model = ["--config.model.mixer=moving_average", "--config.model.memory=20"]
    train = ["research.train", "--config=configs/recall.py"]
    code, said = run(*train, f"--workdir={tmp_path}/run", *model, *SHORT["research.train"])
    assert code == 0, said
    code, said = run(*train, f"--workdir={tmp_path}/x", "--config.model.mixer=moving_averge")
    assert code == 2 and "did you mean 'moving_average'" in said
    softmax = ["--config.model.memory=20", *SHORT["research.train"]]
    code, said = run(*train, f"--workdir={tmp_path}/y", *softmax)
    assert code == 2 and "does not read it, moving_average does" in said
    from_experiment = "import experiments.every_mechanism as e; print(list(e.experiment.arms))"
    found = subprocess.run(
        [sys.executable, "-c", from_experiment], cwd=tmp_path, capture_output=True, text=True
    )
    assert "mixer moving_average" in found.stdout
