"""What the engines write: files that people have read, and scripts that run what was asked for.

The scripts run with other programs faked on PATH. To write the golden files again after a change,
and read the difference in git:

    ATTEST_GOLDEN=write .venv/bin/python -m pytest tests/cloud/launch/test_engines.py
"""

import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
import yaml

from research.cloud.launch.engines import ENGINES, describe, submit, write
from research.cloud.launch.request import Options
from research.cloud.launch.templates import legal_name, shard_names
from research.errors import UserError
from tests.cloud.launch.engine_cases import CASES, CLOUD, HOSTILE, RUN, SWEEP, launched

# Writes its own name and arguments down, after their number; a shell starts faster than Python.
RECORDER = """#!/bin/sh
printf '%s\\0' "$#" "${{0##*/}}" "$@" >> "$RECORD"
"""
# Trains until it is told to stop, then takes a while to save.
TRAINER = """#!{python} -S
import os, signal, sys, time
def note(text):
    with open(os.environ["RECORD"], "a") as file:
        file.write("0\\0" + text + "\\0")
def stop(*_):
    note("TERM")
    global stopped
    stopped = True
stopped = False
signal.signal(signal.SIGTERM, stop)
note("started")
while not stopped and "FINISH" not in os.environ:
    time.sleep(0.02)
time.sleep(0.4)
note("saved")
sys.exit(int(os.environ.get("CODE", "0")))
"""


def fake(folder: Path, *names: str, text: str = RECORDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / name
        path.write_text(text.format(python=sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    own = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}
    return own | {"RECORD": str(tmp_path / "record"), **more}


def recorded(tmp_path: Path) -> list[list[str]]:
    """Returns the names and arguments of the programs that were called."""
    path = tmp_path / "record"
    words = path.read_bytes().decode().split("\0")[:-1] if path.exists() else []
    rows = []
    while words:
        end = 2 + int(words[0])
        rows.append(words[1:end])
        words = words[end:]
    return rows


def bash(script: str, tmp_path: Path, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", script],
        env=environment(tmp_path, **more),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )


def hostile_job(text: str, job=SWEEP):
    source, workdir = PurePosixPath(f"configs/{text}.py"), PurePosixPath(f"runs/{text}")
    return replace(job, arguments=(f"--config={text}",), source=source, workdir=workdir)


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("case", ["slurm", "skypilot", "xpk", "gcloud"])
def test_what_is_written_is_what_was_read(case, monkeypatch):
    monkeypatch.setenv("PATH", "")  # what is missing is said
    launch = launched(*CASES[case])
    # Scripts of the other shards differ in their number alone.
    text = next(iter(launch.files.values()))
    made = text + "\n" + "=" * 100 + "\n" + describe(launch, written=True) + "\n"
    if os.environ.get("ATTEST_GOLDEN") == "write":
        (GOLDEN / f"{case}.txt").write_text(made, encoding="utf-8")
    assert (GOLDEN / f"{case}.txt").read_text(encoding="utf-8") == made


@pytest.mark.parametrize("case", CASES)
def test_scripts_are_bash(case, tmp_path):
    launch = launched(*CASES[case])._replace(folder=tmp_path)
    write(launch)
    scripts = [p for p in tmp_path.rglob("*") if p.suffix in (".sh", ".sbatch")]
    assert {p.name for p in scripts} >= {"submit.sh", "teardown.sh"}
    for path in scripts:
        done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, f"{path.name}: {done.stderr}"


# Of the last command that starts a shard: the words that a person's text is in.
HANDED_ON = {
    "slurm": ("--output={percent}/%A_%a.log", "{folder}/job.sbatch"),
    "skypilot": ("{folder}/task.yaml", "SHARD=2/2"),
    "xpk": ("--script-dir={folder}/code",),
    "gcloud": ("--metadata-from-file=^::^startup-script={folder}/{last}.sh",),
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("engine", ENGINES)
def test_commands_reach_a_program_unchanged(engine, text, tmp_path):
    options = {
        "slurm": Options(),
        "skypilot": Options(slice="v5e:2x2", bucket="my-bucket"),
        "xpk": Options(slice="v5e:4x4", cluster="c", **CLOUD),
        "gcloud": Options(slice="v5e:4x4", **CLOUD),
    }[engine]
    fake(tmp_path / "bin", *(e.program for e in ENGINES.values()), "git", "squeue", "scancel")
    launch = launched(engine, hostile_job(text), options)
    script = "".join(map(launch.commands, ("once", "submit", "watch", "fetch", "teardown")))
    done = bash(script, tmp_path)
    assert done.stderr == "" and not Path("/tmp/attest-hostile").exists()
    rows, folder = recorded(tmp_path), str(launch.folder)
    given = {"folder": folder, "percent": folder.replace("%", "%%")}
    wanted = [w.format(**given, last=launch.values["shards"][-1]) for w in HANDED_ON[engine]]
    assert any(set(wanted) <= set(row) for row in rows)
    if options.bucket:
        assert any(row[1:3] == ["storage", "rsync"] and row[-1] == f"runs/{text}" for row in rows)


def scripts_of(launch) -> list[str]:
    """Returns the bash that the machines of each shard run."""
    if launch.engine == "skypilot":
        return [yaml.safe_load(launch.files["task.yaml"])["run"]]
    return list(launch.files.values())


@pytest.mark.parametrize("text", HOSTILE)
def test_the_command_on_the_machine_is_what_was_asked_for(text, tmp_path):
    job = replace(hostile_job(text), directory=tmp_path)
    fake(tmp_path / "bin", "srun", "python", "scontrol")
    fake(tmp_path / "attest-venv" / "bin", "python")
    own = ["-m", job.module, *job.arguments]

    bash(scripts_of(launched("slurm", job, Options()))[0], tmp_path, SLURM_ARRAY_TASK_ID="2")
    last = [f"--workdir={job.workdir}", "--shard=2/2"]
    assert recorded(tmp_path)[-1] == ["srun", "--kill-on-bad-exit=1", job.python, *own, *last]

    tpu = {"slice": "v5e:4x4", "bucket": "my-bucket"}
    launch = launched("skypilot", job, Options(**tpu))
    last = [f"--workdir=/mnt/attest/{launch.values['name']}", "--shard=2/2", "--distributed"]
    bash(scripts_of(launch)[0], tmp_path, SHARD="2/2")
    assert recorded(tmp_path)[-1] == ["python", *own, *last]

    options = Options(slice="v5e:4x4", cluster="c", image="attest:1", **CLOUD)
    launch = launched("xpk", job, options)
    last[0] = f"--workdir=/mnt/attest/{launch.values['name']}"
    bash(scripts_of(launch)[1], tmp_path)
    assert recorded(tmp_path)[-1] == ["python", *own, *last]
    # An image that holds no script of ours gets it in one word.
    carried = launch.values["commands"][launch.values["shards"][1]]
    bash(carried.replace("/tmp/attest.sh", "./script"), tmp_path)
    assert recorded(tmp_path)[-2:] == [["python", *own, *last]] * 2
    assert not Path("/tmp/attest-hostile").exists()


def start(script: str, tmp_path: Path, **more: str) -> subprocess.Popen:
    process = subprocess.Popen(
        ["bash", "-c", script], env=environment(tmp_path, **more), cwd=tmp_path, text=True
    )
    end = time.monotonic() + 20
    while ["started"] not in recorded(tmp_path):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("code", [0, 143, 2])
def test_slurm_hands_a_signal_on_once_and_queues_again(code, tmp_path):
    fake(tmp_path / "bin", "srun", text=TRAINER)
    fake(tmp_path / "bin", "scontrol")
    (batch,) = scripts_of(launched("slurm", replace(RUN, directory=tmp_path), Options()))
    process = start(batch, tmp_path, SLURM_JOB_ID="7", CODE=str(code))
    # To the batch shell alone, and again before it has saved.
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    ended = process.wait(20)
    requeue = [["scontrol", "requeue", "7"]] if code != 2 else []
    assert recorded(tmp_path) == [["started"], ["TERM"], ["saved"], *requeue]
    assert ended == (0 if requeue else 2)


def test_slurm_queues_nothing_again_that_ended_by_itself_or_too_often(tmp_path):
    fake(tmp_path / "bin", "srun", text=TRAINER)
    fake(tmp_path / "bin", "scontrol")
    (batch,) = scripts_of(launched("slurm", replace(RUN, directory=tmp_path), Options()))
    for code in ("0", "1"):
        done = bash(batch, tmp_path, SLURM_JOB_ID="7", FINISH="1", CODE=code)
        assert done.returncode == int(code)
    assert recorded(tmp_path) == [["started"], ["saved"]] * 2
    (tmp_path / "record").unlink()
    process = start(batch, tmp_path, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="100")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert recorded(tmp_path) == [["started"], ["TERM"], ["saved"]]


def machine_script(tmp_path: Path) -> str:
    """Returns what runs on a machine of SkyPilot's, through the real `timeout`."""
    fake(tmp_path / "attest-venv" / "bin", "python", text=TRAINER)
    return scripts_of(launched("skypilot", RUN, Options(gpus="H100:8", bucket="my-bucket")))[0]


def test_a_machine_that_is_taken_away_asks_for_another(tmp_path):
    process = start(machine_script(tmp_path), tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert recorded(tmp_path) == [["started"], ["TERM"], ["saved"]]


def test_after_its_hours_a_machine_saves_and_is_done(tmp_path):
    script = machine_script(tmp_path)
    assert " 24h\n" in script
    assert bash(script.replace(" 24h\n", " 1s\n"), tmp_path).returncode == 0
    assert recorded(tmp_path) == [["started"], ["TERM"], ["saved"]]


def startup_in(tmp_path: Path) -> str:
    """Returns the startup script of a queued resource, moved into a directory."""
    job = replace(SWEEP, arguments=("--experiment=it's $HOME.py",))
    launch = launched("gcloud", job, Options(slice="v5e:4x4", **CLOUD))
    text = launch.files["head-count-2.sh"]
    for old in ("/var/log", "/opt/attest", "/mnt/attest", "/root", "/usr/share", "/etc/apt"):
        text = text.replace(old, f"{tmp_path}{old}")
    for folder in ("var/log", "opt/attest"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    fake(tmp_path / "bin", "gcloud", "gcsfuse", "mountpoint", "git", "sleep", "python3")
    fake(tmp_path / "opt/attest-venv/bin", "python")
    return text


def test_a_queued_resource_sets_its_machine_up_runs_and_deletes_itself(tmp_path):
    done = bash(startup_in(tmp_path), tmp_path)
    rows = recorded(tmp_path)
    assert done.returncode == 0, (tmp_path / "var/log/attest.log").read_text()
    experiment, flags = "--experiment=it's $HOME.py", ["--shard=2/2", "--distributed"]
    workdir = f"--workdir={tmp_path}/mnt/attest/head-count"
    assert ["python", "-m", "research.sweep", experiment, workdir, *flags] in rows
    installed = [row for row in rows if row[0] == "python3" and "requirements-tpu.txt" in row]
    assert len(installed) == 1
    deleted = [row for row in rows if "delete" in row]
    assert deleted and all(row[5] == "head-count-2" for row in deleted)
    assert list((tmp_path / "mnt/attest/head-count/logs").glob("head-count-2-*.log"))


def test_a_queued_resource_that_cannot_be_set_up_deletes_itself(tmp_path):
    text = startup_in(tmp_path)
    fake(tmp_path / "bin", "python3", text="#!/bin/sh\nexit 3\n")
    assert bash(text, tmp_path).returncode == 1
    rows = recorded(tmp_path)
    assert any("delete" in row for row in rows)
    assert not [row for row in rows if row[:3] == ["python", "-m", "research.sweep"]]


def test_names_are_legal_and_stay_apart():
    texts = [*HOSTILE, "", "9 lives", "a" * 80, "a" * 81, "Ärger", "x--y__z.", "-"]
    for limit in (20, 39, 63):
        for text in texts:
            for shards in (1, 12):
                names = shard_names(text, shards, limit)
                assert len(set(names)) == shards
                for name in names:
                    assert len(name) <= limit and name.isascii()
                    assert name[0].islower() and name[-1].isalnum()
                    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
                    assert "--" not in name
    assert legal_name("a" * 80, 39) != legal_name("a" * 81, 39)
    assert legal_name("attention_type", 39) == "attention-type"


@pytest.mark.parametrize(
    ("engine", "options", "said"),
    [
        ("slurm", Options(slice="v5e:4x4"), "slice"),
        ("slurm", Options(partition="a b"), "partition"),
        ("slurm", Options(partition="gpu\n#SBATCH --wrap=x"), "partition"),
        ("slurm", Options(nodes=2), "--shards=2"),
        ("slurm", Options(hours=0), "hours"),
        ("skypilot", Options(bucket="my-bucket"), "--slice"),
        ("skypilot", Options(bucket="my-bucket", slice="2*v5e:4x4"), "xpk"),
        ("skypilot", Options(bucket="my-bucket", slice="tpu7x:2x2x1"), "xpk"),
        ("skypilot", Options(slice="v5e:4x4"), "--bucket"),
        ("skypilot", Options(bucket="My Bucket", slice="v5e:4x4"), "my-bucket"),
        ("skypilot", Options(bucket="my-bucket", gpus="H100: 8"), "H100:8"),
        ("xpk", Options(slice="v5e:2x2", cluster="c", **CLOUD), "2x4"),
        ("xpk", Options(slice="v5e:4x4", **CLOUD), "--cluster"),
        ("xpk", Options(slice="v5e:4x4", cluster="c", spot=True, **CLOUD), "skypilot, gcloud"),
        ("gcloud", Options(slice="tpu7x:2x2x1", **CLOUD), "xpk"),
        ("gcloud", Options(slice="v5e:3x3", **CLOUD), "2x4, 4x4"),
        ("local", Options(bucket="my-bucket"), "bucket"),
    ],
)
def test_what_an_engine_cannot_do_is_said(engine, options, said):
    with pytest.raises(UserError) as error:
        launched(engine, SWEEP, options)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_only_files_that_travel_are_sent():
    for path in ("/abs/configs/text.py", "../configs/text.py"):
        job = replace(RUN, source=PurePosixPath(path))
        with pytest.raises(UserError, match="inside the current directory"):
            launched("gcloud", job, Options(slice="v5e:4x4", **CLOUD))
        assert launched("slurm", job, Options())


def test_submission_stops_at_the_first_command_that_fails(tmp_path, monkeypatch, capfd):
    fake(tmp_path / "bin", "git")
    fake(tmp_path / "bin", "gcloud", text="#!/bin/sh\nexit 3\n")
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    launch = launched("gcloud", RUN, Options(slice="v5e:4x4", **CLOUD))._replace(folder=tmp_path)
    write(launch)
    assert submit(launch, yes=True) == 3
    assert [row[0] for row in recorded(tmp_path)] == ["git"]
    said = capfd.readouterr()
    assert "ended with code 3" in said.out and "teardown.sh" in said.out
    assert said.err.splitlines()[-1].startswith("+ gcloud storage cp")
    with pytest.raises(UserError, match="--yes"):
        monkeypatch.setattr(sys, "stdin", open(os.devnull))
        submit(launch, yes=False)
    with pytest.raises(UserError, match="xpk==1.16.0"):
        submit(launched(*CASES["xpk"]), yes=True)
