"""The real programs read what is written for them. Offline, without an account.

ATTEST_SKYPILOT names a Python with skypilot==0.14.1, ATTEST_XPK one with xpk==1.16.0; both need
an environment of their own:

    python3 -m venv /tmp/skypilot && /tmp/skypilot/bin/pip install skypilot==0.14.1
    python3 -m venv /tmp/xpk && /tmp/xpk/bin/pip install xpk==1.16.0
    ATTEST_SKYPILOT=/tmp/skypilot/bin/python ATTEST_XPK=/tmp/xpk/bin/python \
        .venv/bin/python -m pytest -m slow tests/cloud/launch/test_engine_programs.py
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from research.cloud.launch.engines import Launch, write
from research.cloud.launch.request import Options
from research.parallel.slices import GENERATIONS, parse_slice
from tests.cloud.launch.engine_cases import CASES, HOSTILE, SWEEP, launched

pytestmark = pytest.mark.slow
SKYPILOT, XPK = os.environ.get("ATTEST_SKYPILOT"), os.environ.get("ATTEST_XPK")
needs_skypilot = pytest.mark.skipif(
    not SKYPILOT, reason="set ATTEST_SKYPILOT to a Python with skypilot (see the top of the file)"
)
needs_xpk = pytest.mark.skipif(
    not XPK, reason="set ATTEST_XPK to a Python with xpk (see the top of the file)"
)
needs_gcloud = pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")

READ_TASK = """
import json, sys, sky
task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
print(json.dumps({
    "name": task.name, "run": task.run, "setup": task.setup, "envs": dict(task.envs),
    "accelerators": resources.accelerators, "args": resources.accelerator_args,
    "spot": resources.use_spot, "recovery": resources.job_recovery,
    "mounts": {k: [v.source, v.mode.value] for k, v in task.storage_mounts.items()},
}))
"""
READ_TYPES = """
import json
from xpk.core.system_characteristics import UserFacingNameToSystemCharacteristics as types
print(json.dumps({k: [v.topology, v.vms_per_slice * v.chips_per_vm] for k, v in types.items()}))
"""


def run(*command: object, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, **more
    )


def commands_of(launch: Launch, *blocks: str) -> list[list[str]]:
    """Returns the words of commands in which no word has a line break."""
    script = "".join(map(launch.commands, blocks)).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in script.splitlines()]
    return [words for words in lines if words]


def read_task(launch: Launch, tmp_path: Path) -> dict:
    """Returns what SkyPilot reads, after holding its script against that of a YAML reader."""
    path = tmp_path / "task.yaml"
    path.write_text(launch.files["task.yaml"], encoding="utf-8")
    done = run(SKYPILOT, "-c", READ_TASK, path, env=os.environ | {"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout.splitlines()[-1])
    assert task["run"].strip() == yaml.safe_load(launch.files["task.yaml"])["run"].strip()
    return task


@needs_skypilot
@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("skypilot")])
def test_skypilot_reads_the_task(case, tmp_path):
    _, job, options = CASES[case]
    task = read_task(launched(*CASES[case]), tmp_path)
    tpu = parse_slice(options.slice) if options.slice else None
    assert task["accelerators"] == ({f"tpu-{tpu.accelerator_type}": 1} if tpu else {"H100": 8})
    assert task["spot"] == options.spot
    assert task["recovery"]["recover_on_exit_codes"] == [143]
    assert task["mounts"] == {"/mnt/attest": ["gs://my-bucket", "MOUNT"]}
    assert task["envs"] == {"SHARD": f"1/{job.shards}"}


@needs_skypilot
@pytest.mark.parametrize("text", HOSTILE)
def test_skypilot_reads_any_argument(text, tmp_path):
    job = replace(SWEEP, arguments=(f"--experiment={text}",))
    options = Options(slice="v5e:4x4", bucket="my-bucket")
    assert read_task(launched("skypilot", job, options), tmp_path)["name"] == "head-count"


@needs_xpk
def test_xpk_has_the_same_names_for_slices():
    types = json.loads(run(XPK, "-c", READ_TYPES).stdout.splitlines()[-1])
    checked = 0
    for generation, entry in GENERATIONS.items():
        for topology in entry.topologies:
            made = parse_slice(f"{generation}:{topology}")
            if made.generation == "v5e" and made.chips < 8:
                assert made.accelerator_type not in types
            else:
                assert types[made.accelerator_type] == [topology, made.chips]
                checked += 1
    assert checked > 35


@needs_xpk
@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("xpk")])
def test_xpk_makes_a_workload_of_the_command(case, tmp_path):
    _, _, options = CASES[case]
    launch = launched(*CASES[case])
    creates = [c for c in commands_of(launch, "submit") if c[0] == "xpk"]
    for command in creates:
        words = command[1:]
        for i, word in enumerate(words):
            if word.startswith("--script-dir="):
                words[i] = f"--script-dir={tmp_path}"
        # What checks and builds an image is a program outside: only the manifest is wanted.
        if not options.image:
            words = [w for w in words if not w.startswith(("--base-docker", "--script-dir"))]
            words.append("--docker-image=attest")
        done = run(Path(XPK).parent / "xpk", *words, "--dry-run", env=os.environ | {"USER": "me"})
        assert done.returncode == 0, done.stdout + done.stderr
        made = parse_slice(options.slice)
        assert f"gke-tpu-topology: {made.topology}\n" in done.stdout
        assert re.search(rf"replicas: {made.count}\b", done.stdout)
        told = next(w for w in words if w.startswith("--command=")).removeprefix("--command=")
        assert f"({told}) & PID" in done.stdout


@needs_gcloud
@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("gcloud")])
def test_gcloud_knows_every_flag(case, tmp_path):
    """It reads its arguments before it asks for an account, which there is none of here."""
    job = replace(CASES[case][1], workdir=tmp_path / "it's, $HOME")
    launch = launched("gcloud", job, CASES[case][2])
    write(launch)
    (launch.folder / "code.bundle").touch()
    environment = os.environ | {
        "CLOUDSDK_CONFIG": str(tmp_path / "config"),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "HOME": str(tmp_path),
        "NO_GCE_CHECK": "True",
    }
    commands = commands_of(launch, "submit", "watch", "fetch", "teardown")
    unlike = {tuple(c[: 5 if c[1] == "compute" else 3]): c for c in commands if c[0] == "gcloud"}
    assert len(unlike) >= 5
    for command in unlike.values():
        done = run(*command, env=environment, stdin=subprocess.DEVNULL)
        assert "do not currently have an active account" in done.stderr, done.stderr
    (create,) = [c for c in unlike.values() if c[4] == "create"]
    done = run(*create, "--spott", env=environment, stdin=subprocess.DEVNULL)
    assert "unrecognized arguments: --spott" in done.stderr
