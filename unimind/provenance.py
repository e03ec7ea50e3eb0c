"""Which code a stage depends on, as a hash that does not change with the place of the clone.

Snakemake cannot see edits inside a package that a rule calls. Each rule therefore carries the hash of the modules
its stage imports, directly or not, as a parameter: editing one loss reruns the stages that use it and no others.
"""

import ast
import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent
# Declarations and plumbing: what they decide reaches a stage through its settings, not through their code.
IGNORED = {"unimind.study", "unimind.stages", "unimind.cli", "unimind.provenance", "unimind.errors", "unimind.progress", "unimind.storage"} | {
    f"unimind.study.{file.stem}" for file in (PACKAGE / "study").glob("*.py")
}


def _file(module: str) -> Path | None:
    base = PACKAGE.joinpath(*module.split(".")[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            if isinstance(body[0].value.value, str):
                node.body = body[1:]  # type: ignore[attr-defined]
    return tree


@functools.cache
def _parse(module: str) -> tuple[str, frozenset[str]]:
    """The module's code without comments and docstrings, and the package's modules it imports anywhere in it."""
    file = _file(module)
    if file is None:
        raise ModuleNotFoundError(module)
    tree = ast.parse(file.read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            imported.add(node.module)
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    own = {name for name in imported if name.split(".")[0] == "unimind" and _file(name)}
    return ast.dump(_without_docstrings(tree)), frozenset(own - IGNORED)


def modules_of(module: str, unused: str | None = None) -> list[str]:
    """All modules of the package that `module` imports, directly or not, itself included, sorted by name.

    `unused` is a module that will not be called, nor what only it imports.
    """
    found: set[str] = set()
    open_ = [module]
    while open_:
        name = open_.pop()
        if name not in found and name != unused:
            found.add(name)
            open_ += _parse(name)[1]
    return sorted(found)


@functools.cache
def code_hash(module: str, unused: str | None = None) -> str:
    """SHA-256 (first 16 hex digits) over the code of `module` and of all it imports from the package but `unused`."""
    digest = hashlib.sha256()
    for name in modules_of(module, unused):
        digest.update(f"{name}\n{_parse(name)[0]}\n".encode())
    return digest.hexdigest()[:16]
