"""The tree is the data flow: who may import whom, who may do I/O, and where third parties are met."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "stream_monitor"
STAGES = ("source", "decode", "summarize", "window", "judge", "publish")
VOCABULARY = frozenset({"records", "errors", "config"})
PURE = ("decode", "summarize", "judge")
IMPURE = frozenset({"time", "os", "threading", "socket", "subprocess", "random", "multiprocessing", "asyncio", "tempfile",
                    "shutil", "logging", "urllib", "http", "requests"})  # fmt: skip

SIDEWAYS: dict[str, frozenset[str]] = {}
"""Exemptions from the flow, module -> what it may import beside its stage's rights. None is needed."""

SEEDED = {"judge/detectors.py": frozenset({"random"}), "summarize/outcome.py": frozenset({"threading"})}
"""Exemptions from purity. Each thread has a compressor of its own, no thread is made. KSWIN draws a sample of its window
from a `random.Random` that is made with a seed; the module is named to put that generator's state back after a restart, so
that the same values still give the same verdicts."""

MET_IN: dict[str, tuple[str, ...]] = {
    "kafka": ("source/",),
    "confluent_kafka": ("source/",),
    "zstandard": ("source/", "summarize/", "judge/baseline.py", "judge/watch.py"),
    "prometheus_client": ("publish/",),
    "fastapi": ("publish/",),
    "starlette": ("publish/",),
    "uvicorn": ("publish/",),
    "river": ("judge/",),
    "scipy": ("judge/", "summarize/"),
    "datasketches": ("summarize/",),
    "duckdb": ("store.py", "decode/", "source/files.py", "history.py"),
    "typer": ("cli.py",),
    "pydantic": ("config.py", "publish/"),
    "yaml": ("config.py",),
}
"""Third parties and the places that know them."""

MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports_of(module: str) -> Iterator[str]:
    """Dotted names of everything a module imports, those for type checkers and inside functions included."""
    for node in ast.walk(ast.parse((PACKAGE / module).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            name = node.module or ""
            yield from (f"{name}.{alias.name}" for alias in node.names) if name == "stream_monitor" else (name,)


def ours(module: str) -> set[str]:
    """What a module imports of this package: the first name below it, a stage or a module of the root."""
    return {name.split(".")[1] for name in imports_of(module) if name.startswith("stream_monitor.")}


def stage_of(module: str) -> str | None:
    """The stage a module belongs to, None for those of the root."""
    head, slash, _ = module.partition("/")
    return head if slash else None


def test_the_walk_sees_the_package() -> None:
    """Every stage is there, with modules that import something of ours."""
    assert {stage_of(module) for module in MODULES} == {*STAGES, None}
    assert all(any(ours(m) for m in MODULES if stage_of(m) == stage) for stage in STAGES)


@pytest.mark.parametrize("module", [m for m in MODULES if stage_of(m)])
def test_a_stage_imports_only_to_the_left_or_down(module: str) -> None:
    """Itself, earlier stages and the vocabulary; publish, the last, may know the types of all."""
    stage = stage_of(module)
    assert stage is not None
    allowed = {*STAGES[: STAGES.index(stage) + 1]} | VOCABULARY | SIDEWAYS.get(module, frozenset())
    assert ours(module) <= allowed


def test_the_vocabulary_imports_nothing_but_itself() -> None:
    """`records` and `errors` are leaves; `config` stands on them."""
    assert ours("records.py") == set()
    assert ours("errors.py") == set()
    assert ours("config.py") <= {"records", "errors"}


@pytest.mark.parametrize("module", [m for m in MODULES if stage_of(m) in PURE])
def test_pure_stages_read_no_clock_file_network_or_environment(module: str) -> None:
    """Time is an argument. Seeded generators alone may draw; NumPy's global one and `random`'s functions may not."""
    impure = {name.split(".")[0] for name in imports_of(module)} & IMPURE
    assert impure <= SEEDED.get(module, frozenset())
    tree = ast.parse((PACKAGE / module).read_text("utf-8"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"open", "print", "input", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
    draws = {name for name in called if name.startswith("np.random.")}
    draws |= {name for name in called if name.startswith("random.")}
    assert draws <= {"np.random.default_rng", "random.Random"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.random.default_rng":
            assert node.args, f"{module}: a generator without a seed"


@pytest.mark.parametrize("party", MET_IN)
def test_a_third_party_is_met_in_one_place(party: str) -> None:
    """Who wants another client, store or exposition has one place to go to."""
    met = [module for module in MODULES if party in {name.split(".")[0] for name in imports_of(module)}]
    assert [module for module in met if not module.startswith(MET_IN[party])] == []


def test_no_module_is_called_after_nothing() -> None:
    """A module is named for its stage or its noun."""
    nothing = {"utils", "util", "helpers", "common", "base", "manager", "misc"}
    assert not {Path(module).stem for module in MODULES} & nothing


def test_imports_make_no_circle_at_run_time() -> None:
    """The root's modules import each other in one direction; what only type checkers read does not count."""
    edges = {
        module: {m for name in run_time_imports(module) if (m := module_of(name)) is not None} for module in MODULES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in sorted(edges[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def run_time_imports(module: str) -> Iterator[str]:
    """Names imported when the module is loaded."""
    for node in ast.parse((PACKAGE / module).read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def module_of(name: str) -> str | None:
    """The module of this package that a dotted name leads to."""
    parts = name.split(".")
    if parts[0] != "stream_monitor":
        return None
    for length in (len(parts), len(parts) - 1):
        path = "/".join(parts[1:length]) + ".py"
        if path in MODULES:
            return path
    return None
