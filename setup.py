"""Puts what lies at the repository's root for people to see, checkpoints and example recordings, into the package that is installed."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithCheckpoints(build_py):
    """Copies `checkpoints` and `assets` beside the modules; an editable installation finds them where they are."""

    def run(self) -> None:
        """Build, then copy; what an earlier build left is not taken along."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            for folder in ("checkpoints", "assets"):
                shutil.copytree(ROOT / folder, Path(self.build_lib) / "qamdetr" / folder, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithCheckpoints})
