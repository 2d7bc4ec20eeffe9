"""Names that an engine takes, made from names that a person gave."""

import hashlib
import re

from research.errors import UserError


def legal_name(text: str, limit: int) -> str:
    """Returns `text` as lower-case letters, digits and single hyphens, the first a letter.

    That is what Google Cloud, Kubernetes and SkyPilot all take (RFC 1035 labels). A name that is
    longer than `limit` characters, or of which nothing is left, ends in 6 hexadecimal digits of the
    hash of `text`, so that two long names stay two names.
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if name and not name[0].isalpha():
        name = f"run-{name}"
    if name and len(name) <= limit:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    kept = name[: limit - len(digest) - 1].rstrip("-") or "run"
    return f"{kept}-{digest}"


def shard_names(text: str, shards: int, limit: int) -> list[str]:
    """Returns the legal names of the shards: NAME-1, NAME-2, ..., or NAME alone for one."""
    if shards == 1:
        return [legal_name(text, limit)]
    base = legal_name(text, limit - len(f"-{shards}"))
    return [f"{base}-{i}" for i in range(1, shards + 1)]


PATTERNS = {
    "bucket": (r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", "a bucket's name, for example my-bucket"),
    "project": (
        r"[a-z][a-z0-9.:-]{4,61}[a-z0-9]",
        "a Google Cloud project, for example my-project",
    ),
    "zone": (r"[a-z]+-[a-z]+[0-9]+-[a-z]", "a zone, for example us-west4-a"),
    "cluster": (r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", "a GKE cluster's name, for example my-cluster"),
    "image": (
        r"[A-Za-z0-9][A-Za-z0-9._/:@-]*",
        "a container image, for example gcr.io/me/attest:1",
    ),
    "partition": (r"[A-Za-z0-9_][A-Za-z0-9_.,+-]*", "a Slurm partition, for example gpu"),
    "account": (r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", "a Slurm account"),
    "gpus": (r"[A-Za-z0-9][A-Za-z0-9_.-]*(:[1-9][0-9]*)?", "GPUs of a machine, for example H100:8"),
}
"""{option: (what it may be, what it is in words)}: these words reach other programs unchanged."""


def check_option(name: str, value: str) -> None:
    """Raises UserError for a value that another program would not take as one plain word."""
    pattern, words = PATTERNS[name]
    if value and not re.fullmatch(pattern, value):
        raise UserError(f"--{name}={value!r} must be {words}.")
