"""Runs `train`, `publish` or a command of `qamdetr` with the spaces of `recipes.open.spaces`: `python -m recipes.open.run extract ...`."""

from __future__ import annotations

import sys

import train
from qamdetr import cli
from recipes import publish
from recipes.open import spaces  # noqa: F401 - registers them

if __name__ == "__main__":
    command, *rest = sys.argv[1:] or [""]
    others = {"train": train.main, "publish": publish.main}
    sys.exit(others[command](rest) if command in others else cli.main(sys.argv[1:]))
