"""Which of our source files a run's outcome depends on, and a hash of what they do.

A run is made again when the code that made it has changed, and only then: the files are those that its classes import,
followed name by name through the packages' re-exports, and a file counts by its syntax tree without docstrings, so that
neither a comment nor a touched file makes anything run.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("attacks", "datamodules", "interpret", "lightning_modules", "networks", "shift")

# What every test runs through, whichever attacks it is given.
EVALUATION = ("attacks.callback.AttackSuite", "interpret.callback.Interpretation", "shift.callback.Shift")


def code_key(names: Iterable[str]) -> str:
    """Hash of the code behind classes of ours, as 8 hexadecimal digits; names of others, such as torch's, are skipped.

    Args:
        names: dotted names, ``lightning_modules.ARD`` or ``attacks.gradient.PGD``.
    """
    files: set[str] = set()
    for name in sorted(set(names)):
        files |= _closure(name)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.encode())
        digest.update(_meaning(ROOT / file).encode())
    return digest.hexdigest()[:8]


def _closure(name: str) -> set[str]:
    """The files that a name's module imports, directly or not, itself included; relative to the root."""
    found: set[str] = set()
    waiting = list(_resolve(name))
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imports(file)
    return found


@cache
def _imports(file: str) -> tuple[str, ...]:
    """Our files that a file imports, anywhere in it but for type checkers alone."""
    found: set[str] = set()
    for node in _statements(_tree(ROOT / file)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            found |= _resolve(name)
    # A package's own file only passes on: what is wanted of it has been followed to where it is defined.
    return tuple(sorted(found))


def _resolve(name: str) -> set[str]:
    """The file that defines a dotted name: a module's own, or the one that its package takes it from."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return set()
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        if path.with_suffix(".py").is_file():
            return {str(path.with_suffix(".py").relative_to(ROOT))}
        if (path / "__init__.py").is_file():
            return _exported(path / "__init__.py", parts[length]) if length < len(parts) else {_relative(path)}
    return set()


def _exported(init: Path, name: str) -> set[str]:
    """Where a package takes a name from; its own file for what it defines itself."""
    for node in _statements(_tree(init)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _resolve(f"{node.module}.{alias.name}")
    return {str(init.relative_to(ROOT))}


def _relative(package: Path) -> str:
    return str((package / "__init__.py").relative_to(ROOT))


def _statements(tree: ast.AST) -> Iterable[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        skipped = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        waiting += node.orelse if skipped else ast.iter_child_nodes(node)  # type: ignore[attr-defined]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def _meaning(path: Path) -> str:
    """A file's syntax tree as text, without docstrings and places."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not body:
            continue
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body = body[1:]
    return ast.dump(tree)
