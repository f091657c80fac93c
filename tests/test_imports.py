"""Who may import whom (ARCHITECTURE.md): common nothing of ours, client and server common, simulations all."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED: dict[str, set[str]] = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "simulations": {"simulations", "client", "server", "common"},
}


def imported(source: str) -> set[str]:
    """Return the first part of every module that a source imports, at any depth of nesting."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports break in Flower's copy of the app"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_what_the_table_allows(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        ours = imported(path.read_text(encoding="utf-8")) & (ALLOWED.keys() | {"tests"})
        assert ours <= ALLOWED[folder], f"{path.relative_to(ROOT)} imports {sorted(ours - ALLOWED[folder])}"


def test_the_check_sees_imports_inside_functions() -> None:
    assert imported("def f():\n    import server.app\n    from client import site") == {"server", "client"}


def test_no_folder_grows_past_ten_files_without_being_grouped() -> None:
    for folder in ALLOWED:
        files = [path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 10, f"{folder}/ has {len(files)} files; group them by what a newcomer would look for"
