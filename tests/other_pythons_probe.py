"""Run by `test_other_pythons.py` with another Python: compiles sources, and looks up what they take from the standard library.

Needs nothing but the standard library. Prints one line per name that this Python does not have.
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path


class Lookups(ast.NodeVisitor):
    """Collects `(module, attribute)` pairs of the standard library that a file uses; what only type checkers read does not count."""

    def __init__(self) -> None:
        self.used: set[tuple[str, str]] = set()
        self._modules: dict[str, str] = {}

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if _is_standard(alias.name):
                self.used.add((alias.name, ""))
                self._modules[alias.asname or alias.name] = alias.name

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level == 0 and node.module != "__future__" and _is_standard(node.module or ""):
            self.used |= {(node.module or "", alias.name) for alias in node.names}

    def visit_Attribute(self, node: ast.Attribute) -> None:
        base = ast.unparse(node.value)
        if base in self._modules:
            self.used.add((self._modules[base], node.attr))
        self.generic_visit(node)


def _is_standard(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] in sys.stdlib_module_names


def _is_there(module: str, attribute: str) -> bool:
    try:
        found = importlib.import_module(module)
    except ImportError:
        return False
    if not attribute or hasattr(found, attribute):
        return True
    try:
        importlib.import_module(f"{module}.{attribute}")
    except ImportError:
        return False
    return True


def main(folder: Path) -> None:
    """Check all Python files of a folder."""
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        compile(text, str(path), "exec", dont_inherit=True)
        lookups = Lookups()
        lookups.visit(ast.parse(text))
        for module, attribute in sorted(lookups.used):
            if not _is_there(module, attribute):
                sys.stdout.write(f"{path.relative_to(folder.parent)}: {module}.{attribute}\n")


for name in sys.argv[1:]:
    main(Path(name))
