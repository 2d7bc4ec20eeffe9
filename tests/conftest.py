"""What all tests share: the repository root as working directory, one compilation cache."""

import gc
import os
import sys
from pathlib import Path

import jaxtyping
import pytest

ROOT = Path(__file__).parent.parent
MOST_MAPS = 40_000
"""Memory maps after a file of tests, above which programs are dropped; a file adds to 12,000."""
MOST_MEMORY = 3 * 2**30
"""Bytes of a process after a file of tests, above which programs and garbage are dropped."""
LONG = ("test_readme.py", "test_eight_devices.py", "test_configs.py", "test_speech_runs.py")
"""Files that go first: at the end, one of two workers would have nothing to do beside them."""

SHARING = (
    "test_damage.py",
    "test_full_disk.py",
    "test_loop.py",
    "test_profiling.py",
    "test_program.py",
)
"""Files of tests/training that train the same runs: one worker traces and compiles these once."""

SKIPPED = "attest/skipped"
"""Where pytest's cache has {test or file: why the last run skipped it}."""

# Most of the tests' time is XLA making machine code for arrays of a few numbers: here it optimizes
# nothing, and emits code the way that takes half as long to compile. The slow tests run it as users
# do: `make test-slow` sets the flags to nothing.
os.environ.setdefault(
    "XLA_FLAGS",
    " ".join(
        (
            "--xla_backend_optimization_level=0",
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_llvm_disable_expensive_passes=true",
            "--xla_cpu_parallel_codegen_split_count=1",
            "--xla_cpu_max_isa=AVX2",
        )
    ),
)

# Searches for garbage are rare: through what is imported and through what is being traced, they
# take a fifth of the time of the tests.
gc.set_threshold(1_000_000, 20, 20)

# Test helpers are imported as tests.NAME, wherever pytest was started.
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# Shapes and dtypes of every annotated function of the package are checked while it is tested (see
# `_checked_shapes`). Here, because a module that was imported before the hook is not checked. All
# modules but the options, which check their types themselves, in their own words.
jaxtyping.install_import_hook(
    [
        ".".join(module.relative_to(ROOT).with_suffix("").parts)
        for module in sorted((ROOT / "research" / "attention").rglob("*.py"))
        if module.stem not in ("__init__", "options")
    ],
    "beartype.beartype",
)

from research.training.program import clear_programs  # noqa: E402
from research.training.records.environment import enable_compilation_cache  # noqa: E402

# The directory is that of the commands, so that tests which start them compile nothing anew.
enable_compilation_cache()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that runs what an earlier run skipped."""
    parser.addoption(
        "--skipped-for",
        default="",
        metavar="WORD",
        help="Only tests that the last run without this option skipped with WORD in the reason, "
        "for example torch, once that is installed.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keeps the reasons of skipped tests from one run to the next."""
    if not config.getoption("--skipped-for") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Skips(config))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """Gives files that share programs to one worker, as `--dist loadfile` gives one file."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/training" if file.endswith(SHARING) else file

    return Together(config, log) if config.getoption("dist") == "loadfile" else None


class Skips:
    """Records which tests and which whole files a run skips, with the reasons."""

    def __init__(self, config: pytest.Config):
        self.config, self.reasons = config, {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[report.nodeid] = report.longrepr[2]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[report.nodeid] = report.longrepr[2]

    def pytest_sessionfinish(self) -> None:
        cache = getattr(self.config, "cache", None)
        if cache and not self.config.option.collectonly:
            cache.set(SKIPPED, self.reasons)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the files that take longest first, the others in their order."""
    place = {name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))
    if word := config.getoption("--skipped-for"):
        reasons = config.cache.get(SKIPPED, {})
        chosen = {name for name, reason in reasons.items() if word in reason}
        parts: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            parts[bool(chosen & {item.nodeid, item.nodeid.split("::")[0]})].append(item)
        config.hook.pytest_deselected(items=parts[False])
        items[:] = parts[True]


def pytest_collection_finish() -> None:
    """Leaves what was imported out of searches for garbage: it lives until the end."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Leaves everything out of the searches that pytest and Python make when they end."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _checked_shapes(request: pytest.FixtureRequest):
    """Checks annotations in the tests of attention, and everywhere in `make test-slow`.

    The models call the same functions; to check each call again as they are traced takes long.
    """
    everywhere = "not slow" not in request.config.option.markexpr
    checked = everywhere or ROOT / "tests" / "attention" in request.path.parents
    jaxtyping.config.update("jaxtyping_disable", not checked)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="session")
def _in_root():
    """Configs name each other relative to the repository root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
    """A compiled program holds hundreds of memory maps, of which a process gets 65,530 on Linux.

    Past them the compiler dies, and all tests of a suite in two processes need more than that.
    """
    yield
    maps = Path("/proc/self/maps")
    many = maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS
    if many or resident() > MOST_MEMORY:
        clear_programs()
        gc.collect()


def resident() -> int:
    """Returns the bytes of memory that this process holds; 0 where the system does not say."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """A test that downloads would pass or fail with the weather."""
    from tests.commands import no_network

    monkeypatch.setattr("urllib.request.urlopen", no_network)
