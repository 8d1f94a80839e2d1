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
    """Hash of the code behind classes of ours, and of modules in the working directory, as 8 hexadecimal digits.

    Args:
        names: ``lightning_modules.ARD``, ``attacks.gradient.PGD``, ``ARD``, ``my_network.Net``; those of installed
            packages, such as torch's, are skipped.
    """
    files = set().union(*map(_closure, names))
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.encode())
        digest.update(_meaning(_place(file)).encode())
    return digest.hexdigest()[:8]


@cache
def _closure(name: str) -> frozenset[str]:
    """The files that a name's module imports, directly or not, itself included; relative to the root."""
    found: set[str] = set()
    waiting = list(_resolve(name))
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imports(file)
    return frozenset(found)


@cache
def _imports(file: str) -> tuple[str, ...]:
    """Our files that a file imports, anywhere in it but for type checkers alone."""
    found: set[str] = set()
    for node in _statements(_tree(_place(file))):
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
    """The file that defines a dotted name: a module's own, or the one that its package takes it from.

    A name without dots is one that a package of ours exports, as the command line takes it, or none.
    """
    parts = name.split(".")
    if len(parts) == 1 and not _under(parts[0]).exists():
        inits = (ROOT / package / "__init__.py" for package in PACKAGES)
        return set().union(*(_exported(init, name) for init in inits if init.is_file()))
    for length in range(len(parts), 0, -1):
        path = _under(*parts[:length])
        if path.with_suffix(".py").is_file():
            return {_relative(path.with_suffix(".py"))}
        if (path / "__init__.py").is_file():
            init = path / "__init__.py"
            return (length < len(parts) and _exported(init, parts[length])) or {_relative(init)}
    return set()


def _under(first: str, *rest: str) -> Path:
    """Where a package of ours is, or a person's own beside which the command is run."""
    return (ROOT if first in PACKAGES else Path.cwd()).joinpath(first, *rest)


def _place(file: str) -> Path:
    return _under(*Path(file).parts)


def _relative(path: Path) -> str:
    root = ROOT if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES else Path.cwd()
    return str(path.relative_to(root))


def _exported(init: Path, name: str) -> set[str]:
    """Where a package takes a name from; nothing for what it does not import."""
    for node in _statements(_tree(init)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _resolve(f"{node.module}.{alias.name}")
    return set()


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
