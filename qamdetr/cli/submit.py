"""`submit`: write a submission to the challenge, or check one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qamdetr.cli.common import note
from qamdetr.errors import QamDetrError
from qamdetr.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qamdetr.cli.common import Commands
    from qamdetr.data.manifest import QueryEntry


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "submit",
        help="write or check a submission to the challenge",
        description="Write {label}.output.jsonl and {label}.meta.yaml for DCASE 2026 Task 6, or check such files and list every problem.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="the predictions file; with --check each system's .jsonl and .yaml")
    parser.add_argument("--manifest", required=True, metavar="JSONL", help="the evaluation set")
    parser.add_argument("--check", action="store_true", help="check files and write nothing")
    parser.add_argument("--label", metavar="LABEL", help="Last_Inst_task6_N, N from 1 to 4")
    parser.add_argument("--output", metavar="DIR", help="where the two files go")
    parser.add_argument("--metadata", metavar="YAML", help="what only you know: name, abbreviation, authors, data, ensemble")
    parser.add_argument("--checkpoint", metavar="NAME_OR_DIR", help="fills in streams, parameters and loss")
    parser.add_argument("--dev-scores", nargs=2, metavar=("PREDICTIONS", "GROUND_TRUTH"), help="fills in the development results")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Write or check."""
    from qamdetr.data.manifest import read_manifest

    manifest = read_manifest(args.manifest, clamp=False)
    if args.check:
        _check(args, manifest)
    else:
        _write(args, manifest)


def _check(args: argparse.Namespace, manifest: Sequence[QueryEntry]) -> None:
    from qamdetr.evaluation.submission import check_submission

    for option in ("label", "output", "metadata", "checkpoint", "dev_scores"):
        if getattr(args, option) is not None:
            raise QamDetrError(f"--{option.replace('_', '-')} is for writing; leave it out with --check.")
    outputs = [path for path in args.files if Path(path).suffix == ".jsonl"]
    metadata = [path for path in args.files if Path(path).suffix in (".yaml", ".yml")]
    strange = [path for path in args.files if path not in (*outputs, *metadata)]
    if strange:
        raise QamDetrError(f"{strange[0]} is neither .jsonl nor .yaml; give each system's output and metadata files.")
    problems = check_submission(sorted(outputs), sorted(metadata), manifest)
    if problems:
        print("\n".join(" ".join(problem.split()) for problem in problems))
        raise QamDetrError(f"the submission has {len(problems)} problem{'s' * (len(problems) > 1)}, listed above; mend and check again.")
    print(f"OK: {len(outputs)} system{'s' * (len(outputs) > 1)}, {len(manifest)} queries.")


def _write(args: argparse.Namespace, manifest: Sequence[QueryEntry]) -> None:
    from qamdetr.data.manifest import read_predictions
    from qamdetr.evaluation import submission
    from qamdetr.evaluation.submission import check_submission

    if args.label is None or args.output is None:
        raise QamDetrError("A submission needs --label and --output DIR; to check files, give --check.")
    if len(args.files) > 1:
        raise QamDetrError(f"{len(args.files)} files were given; a submission is written from one predictions file.")
    if not submission.is_label(args.label):
        raise QamDetrError(f"--label {args.label!r} does not have the form {submission.LABEL_FORM}, with a number from 1 to 4.")
    output = Path(args.output) / f"{args.label}{submission.OUTPUT_SUFFIX}"
    description = Path(args.output) / f"{args.label}{submission.METADATA_SUFFIX}"
    for path in (output, description):
        if path.exists():
            raise QamDetrError(f"{path} is there already; choose another --label or --output, or remove it.")

    text, left_out = submission.output_text(read_predictions(args.files[0]), manifest)
    metadata = submission.fill_metadata(*_known(args), {"submission": {"label": args.label}})
    write_whole(output, text)
    write_whole(description, submission.metadata_text(metadata))
    print(f"{output}\n{description}")
    if left_out:
        note(f"{left_out} windows were empty or past the end of their recording and were left out.")
    for problem in check_submission([output], [description], manifest):
        note(f"not ready yet: {problem}")


def _known(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Gather what is known of the metadata, the most certain last: a person's word is above what was read or measured."""
    from qamdetr.data.manifest import read_manifest, read_predictions
    from qamdetr.evaluation import submission
    from qamdetr.evaluation.metrics import evaluate

    given = [] if args.metadata is None else [submission.read_metadata(args.metadata)]
    parts: list[dict[str, Any]] = []
    if args.dev_scores is not None:
        predictions, truth = args.dev_scores
        scores = evaluate(read_predictions(predictions, allow_pairs=True), read_manifest(truth, clamp=False))
        parts.append(submission.development_results(scores))
    if args.checkpoint is not None:
        parts.append(submission.describe_checkpoint(args.checkpoint))
    return [*parts, *given]
