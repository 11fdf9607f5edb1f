"""What the package shows of itself: its public names, its version, the way imports run."""

import ast
import re
from pathlib import Path

import pytest

import kogpt

ROOT = Path(kogpt.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py"))

OPEN_TO_ALL = {
    *("errors", "box", "textfiles", "jsonfiles", "pictures", "ranges", "choices", "notes"),
}
# Which other rooms a room may import from.
MAY_IMPORT = {
    "kernels": set(),
    "tokenizer": set(),
    "model": {"kernels", "checkpoint"},  # checkpoint in `KoGPT.from_pretrained` alone
    "checkpoint": {"model", "kernels"},
    "adapters": {"model", "kernels", "checkpoint"},
    "fast": {"model", "kernels", "checkpoint", "adapters"},
    "generation": {"model", "tokenizer"},
    "parallel": {"model", "checkpoint", "adapters"},
    "training": {
        *("model", "kernels", "tokenizer", "checkpoint", "adapters", "generation", "evaluation"),
        *("parallel", "architecture"),
    },
    "benchmarking": {"model", "fast", "kernels", "generation"},
    "diagnostics": {"model", "tokenizer", "checkpoint", "generation"},
    "evaluation": {
        *("model", "tokenizer", "checkpoint", "generation", "loading", "adapters", "parallel"),
        "architecture",
    },
}


def imported_rooms(path: Path) -> set[str]:
    """First-level parts of the package that a module imports from."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("kogpt.")}


@pytest.mark.parametrize("name", kogpt.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(kogpt, name).__doc__


def test_type_checkers_are_shown_the_same_names():
    stub = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module for node in imports for alias in node.names}
    assert homes == kogpt._HOME_OF
    (names,) = (n.value for n in stub.body if isinstance(n, ast.Assign))
    assert ast.literal_eval(names) == kogpt.__all__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = kogpt.nonsense


def test_the_version_is_the_one_that_is_installed():
    setup = (ROOT.parent / "setup.py").read_text(encoding="utf-8")
    assert re.search(r'version="(.+?)"', setup)[1] == kogpt.__version__


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room):
    for path in (ROOT / room).rglob("*.py"):
        strangers = imported_rooms(path) - MAY_IMPORT[room] - {room} - OPEN_TO_ALL
        assert not strangers, f"{path.relative_to(ROOT.parent)} imports {strangers}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_functions_stay_short(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and node.body[1:] else node.body[0]
            lines = node.end_lineno - first.lineno + 1
            assert lines <= 40, f"{node.name} has {lines} lines"
