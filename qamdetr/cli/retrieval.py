"""What the commands that find moments share: their options, and the checkpoint or system and the verifier that these open."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qamdetr.cli.common import add_encoder_option, find_audio, read_encoders
from qamdetr.errors import AudioError, DataError, QamDetrError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qamdetr.config import VerifierConfig
    from qamdetr.data.manifest import QueryEntry
    from qamdetr.inference.retriever import MomentRetriever, SystemConfig
    from qamdetr.types import Result
    from qamdetr.verifiers.base import Verifier


def add_options(parser: argparse.ArgumentParser, *, checkpoint_default: str = " (default: qam-detr-pocket)") -> None:
    """Add the options that the functions below read; `checkpoint_default` ends the help of `--checkpoint`."""
    parser.add_argument("--checkpoint", metavar="NAME_OR_DIR", help=f"a shipped checkpoint or a folder{checkpoint_default}")
    parser.add_argument(
        "--system", metavar="NAME_OR_FILE", help="several checkpoints as one: submit1 to submit4 of the report, or a YAML file"
    )
    parser.add_argument("--members", metavar="NAME_OR_DIR", nargs="+", help="with --system: checkpoints in the place of its own")
    parser.add_argument(
        "--set",
        metavar="a.b=c",
        dest="overrides",
        action="append",
        default=[],
        help="change a setting of the checkpoint, such as data.feature_dir=features, or of the system, such as merge=fusion; repeatable",
    )
    add_encoder_option(parser)
    parser.add_argument("--device", metavar="NAME", help="where the models run, such as cpu or cuda:0 (default: a GPU for big encoders)")
    parser.add_argument(
        "--verifier",
        metavar="NAME",
        help="none, pocket, qwen2.5-omni or server (default: none, or the system's own)",
    )
    parser.add_argument(
        "--verifier-model", metavar="ID_OR_FOLDER", help="the verifier's model: hub id or folder, or the server's name of it"
    )
    parser.add_argument("--verifier-url", metavar="URL", help="of the server, such as http://localhost:8000/v1")


def check_options(args: argparse.Namespace) -> None:
    """Refuse now what would be refused after models were loaded.

    Raises:
        QamDetrError: Options that do not go together, or values that nothing can be done with.
    """
    from qamdetr.verifiers import check_verifier

    if args.system is not None and args.checkpoint is not None:
        raise QamDetrError("--checkpoint and --system are two ways to answer; give one of them (--members changes a system's checkpoints).")
    if args.members is not None and args.system is None:
        raise QamDetrError("--members goes with --system; give one checkpoint with --checkpoint.")
    if args.verifier is not None:
        check_verifier(args.verifier)
    read_encoders(args.encoders)


def open_retriever(args: argparse.Namespace) -> MomentRetriever:
    """Open the checkpoint or system for recordings.

    Raises:
        QamDetrError: It, or its encoders, cannot be used.
    """
    from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT
    from qamdetr.inference.retriever import MomentRetriever

    models = read_encoders(args.encoders)
    if args.system is not None:
        return MomentRetriever.from_system(_load_system(args), device=args.device, encoder_models=models)
    name = args.checkpoint or DEFAULT_CHECKPOINT
    return MomentRetriever.from_pretrained(name, overrides=args.overrides, device=args.device, encoder_models=models)


def open_stored_retriever(args: argparse.Namespace, entries: Sequence[QueryEntry], audio_dir: Path) -> MomentRetriever:
    """Open the checkpoint or system for the stored features of a manifest.

    Raises:
        QamDetrError: It, or the features, cannot be used.
    """
    from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT
    from qamdetr.inference.retriever import MomentRetriever

    source = _load_system(args) if args.system is not None else args.checkpoint or DEFAULT_CHECKPOINT
    overrides = () if args.system is not None else args.overrides
    return MomentRetriever.from_features(source, entries, overrides=overrides, audio_dir=audio_dir, device=args.device)


def open_for_manifest(
    args: argparse.Namespace, entries: Sequence[QueryEntry], *, must_verify: bool = False
) -> tuple[MomentRetriever, Mapping[str, str | Path], Verifier | str]:
    """Open what answers a manifest, from its recordings or, with `--from-features`, from stored features.

    Args:
        args: The options.
        entries: The manifest.
        must_verify: A verifier whose model or server is not there is an error.

    Returns:
        The retriever; `vid` -> what its `encode` takes; the verifier.

    Raises:
        QamDetrError: Something of it is missing or cannot be used, or a query cannot be read: told before minutes of encoding.
    """
    from qamdetr.inference.retriever import check_query

    recordings: Mapping[str, str | Path]
    retriever: MomentRetriever
    if args.from_features:
        audio_dir = Path(args.manifest).parent / "audio" if args.audio_dir is None else Path(args.audio_dir)
        retriever = open_stored_retriever(args, entries, audio_dir)
        recordings = {entry.vid: entry.vid for entry in entries}
    else:
        recordings = find_audio(entries, args.manifest, args.audio_dir)
        retriever = open_retriever(args)
    verifier = open_verifier(args, retriever)
    if args.from_features:
        check_sounds(verifier, entries, args.manifest, args.audio_dir)
    if must_verify and not isinstance(verifier, str):
        verifier.check()
    entry = entries[0]
    try:
        for entry in entries:
            retriever.encoder.encode_query(check_query(entry.query))
    except QamDetrError as error:
        raise DataError(f"{args.manifest}: query {entry.qid!r}: {error}") from error
    return retriever, recordings, verifier


def open_verifier(args: argparse.Namespace, retriever: MomentRetriever) -> Verifier | str:
    """Make the verifier that the options ask for, else the system's; `none` where nobody asks for one.

    Raises:
        QamDetrError: Settings that the verifier cannot use, or settings without a verifier.
    """
    from qamdetr.verifiers import make_verifier

    name = args.verifier or retriever.verifier
    settings: VerifierConfig = retriever.verifier_settings
    given = {"model": args.verifier_model, "url": args.verifier_url}
    for option, value in given.items():
        if value is not None and name in ("none", "pocket"):
            raise QamDetrError(f"--verifier-{option} goes with --verifier qwen2.5-omni or server; verifier {name!r} has none.")
    settings = replace(settings, **{option: value for option, value in given.items() if value is not None})
    return make_verifier(name, settings) or name


def retrieve(
    retriever: MomentRetriever, path: str, queries: Sequence[str], verifier: Verifier | str, args: argparse.Namespace, failures: list[str]
) -> list[Result]:
    """Encode a recording once and answer all queries; one that cannot be read gives no results and adds to `failures`."""
    try:
        recording = retriever.encode(path)
    except AudioError as error:
        failures.append(str(error))
        return []
    return retriever.retrieve_many(recording, queries, top_k=args.top_k, verifier=verifier, beta=args.beta, protocol=args.protocol)


def check_sounds(verifier: Verifier | str, entries: Sequence[QueryEntry], manifest: str, audio_dir: str | None) -> None:
    """Refuse a verifier that listens where there is nothing to listen to.

    Raises:
        DataError: Names the recordings that are missing.
    """
    if isinstance(verifier, str) or not verifier.needs_audio:
        return
    try:
        find_audio(entries, manifest, audio_dir)
    except (AudioError, DataError) as error:
        raise DataError(
            f"Verifier {verifier.name} listens to the recordings, and --from-features does not bring them. {error} "
            "Or take --verifier pocket, which does with the features."
        ) from error


def _load_system(args: argparse.Namespace) -> SystemConfig:
    from qamdetr.inference.retriever import load_system

    return load_system(args.system, args.overrides, members=args.members or ())
