"""`synthesize`: make recordings with known moments."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, get_type_hints

from qamdetr.synthesis.recipe import SceneRecipe

if TYPE_CHECKING:
    from qamdetr.cli.common import Commands


def add(commands: Commands) -> None:
    """Add the command's options: one for each field of the recipe."""
    parser = commands.add_parser(
        "synthesize",
        help="make recordings with known moments",
        description="Overlay captioned clips on backgrounds: long recordings with queries and true windows.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--clips", required=True, metavar="DIR", help="captioned clips: audio files and clips.csv")
    parser.add_argument("--backgrounds", metavar="DIR", help="long background recordings (none: quiet pink noise)")
    parser.add_argument("--output", required=True, metavar="DIR", help="where audio/, manifest.jsonl and the data card go")
    hints = get_type_hints(SceneRecipe)
    for field in dataclasses.fields(SceneRecipe):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=hints[field.name], default=field.default, metavar="X", help=field.metadata["help"])
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Make the scenes and print where their manifest lies."""
    from qamdetr.synthesis.synthesize import synthesize

    recipe = SceneRecipe(**{field.name: getattr(args, field.name) for field in dataclasses.fields(SceneRecipe)})
    print(synthesize(args.clips, args.backgrounds, args.output, recipe))
