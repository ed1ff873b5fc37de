"""Counts the lines of each room against its budget: whoever needs more takes some away, or argues in docs/decisions.

`python -m tools.budget` prints the table and fails where a room is over. All lines of `.py` files count, docstrings and blanks too.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

BUDGETS = {
    **dict.fromkeys(("__init__.py", "__main__.py"), 20),
    **{
        "errors.py": 50,
        "types.py": 194,
        "config.py": 374,
        "spans.py": 105,
        "files.py": 72,
        "audio.py": 956,
        "model": 1475,
        "kernels": 1230,
    },
    **{"features": 2607, "data": 620, "inference": 1418, "verifiers": 825, "training": 922, "evaluation": 1135, "synthesis": 1020},
    **{"export": 580, "cli": 1175, "ui": 5603},
}
"""Part of the package -> lines."""

HEART = ("model", "data", "training", "inference", "types.py", "config.py", "spans.py", "files.py", "errors.py", "features/pipeline.py")
HEART_LINES, PACKAGE_LINES, PACKAGE_FILES, TEST_LINES = 5305, 14_760, 81, 14_610
"""Of the heart; of the package without `ui`; of the tests."""


def count(path: Path) -> tuple[int, int]:
    """Lines and files of Python under a folder, or of a file."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files), len(files)


def rows() -> list[tuple[str, int, int]]:
    """Return what is counted, how much there is, and how much there may be."""
    package = ROOT / "qamdetr"
    counted = {part: count(package / part) for part in BUDGETS}
    unknown = {path.name for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()} - set(BUDGETS)
    if unknown:
        raise SystemExit(f"{', '.join(sorted(unknown))}: no budget in tools/budget.py; give the new part one.")
    lines, files = (sum(counts[index] for part, counts in counted.items() if part != "ui") for index in (0, 1))
    return [
        *((part, counted[part][0], budget) for part, budget in BUDGETS.items()),
        ("heart", sum(count(package / part)[0] for part in HEART), HEART_LINES),
        ("package without ui", lines, PACKAGE_LINES),
        ("its files", files, PACKAGE_FILES),
        ("tests", count(ROOT / "tests")[0], TEST_LINES),
    ]


def main() -> int:
    """Print the table; 1 where something is over its budget."""
    table = rows()
    for name, number, budget in table:
        sys.stdout.write(f"{name:<20}{number:>8}{budget:>8}{'   over by ' + str(number - budget) if number > budget else ''}\n")
    return int(any(number > budget for _, number, budget in table))


if __name__ == "__main__":
    sys.exit(main())
