"""What the commands that find moments share: their options, and the checkpoint or system and the verifier that these open."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qamdetr.cli.common import find_audio
from qamdetr.errors import AudioError, DataError, QamDetrError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qamdetr.config import VerifierConfig
    from qamdetr.data.manifest import QueryEntry
    from qamdetr.inference.ensemble import EnsembleRetriever
    from qamdetr.inference.retriever import MomentRetriever
    from qamdetr.inference.system import SystemConfig
    from qamdetr.inference.verifiers.base import Verifier
    from qamdetr.types import Result

    Retriever = MomentRetriever | EnsembleRetriever


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
    parser.add_argument(
        "--encoder",
        metavar="STREAM=ID_OR_FOLDER",
        dest="encoders",
        action="append",
        default=[],
        help="take this hub id or folder for a stream's encoder; repeatable",
    )
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
    from qamdetr.inference.verifiers.registry import check_verifier

    if args.system is not None and args.checkpoint is not None:
        raise QamDetrError("--checkpoint and --system are two ways to answer; give one of them (--members changes a system's checkpoints).")
    if args.members is not None and args.system is None:
        raise QamDetrError("--members goes with --system; give one checkpoint with --checkpoint.")
    if args.verifier is not None:
        check_verifier(args.verifier)
    _encoder_models(args)


def open_retriever(args: argparse.Namespace) -> Retriever:
    """Open the checkpoint or system for recordings.

    Raises:
        QamDetrError: It, or its encoders, cannot be used.
    """
    models = _encoder_models(args)
    if args.system is not None:
        from qamdetr.inference.system import open_system

        return open_system(_load_system(args), device=args.device, encoder_models=models)
    from qamdetr.inference.pretrained import DEFAULT_CHECKPOINT
    from qamdetr.inference.retriever import MomentRetriever

    name = args.checkpoint or DEFAULT_CHECKPOINT
    return MomentRetriever.from_pretrained(name, overrides=args.overrides, device=args.device, encoder_models=models)


def open_stored_retriever(args: argparse.Namespace, entries: Sequence[QueryEntry], audio_dir: Path) -> Retriever:
    """Open the checkpoint or system for the stored features of a manifest.

    Raises:
        QamDetrError: It, or the features, cannot be used.
    """
    if args.system is not None:
        from qamdetr.inference.system import open_stored_system

        return open_stored_system(_load_system(args), entries, audio_dir=audio_dir, device=args.device)
    from qamdetr.inference.from_features import open_stored
    from qamdetr.inference.pretrained import DEFAULT_CHECKPOINT

    return open_stored(args.checkpoint or DEFAULT_CHECKPOINT, entries, args.overrides, audio_dir=audio_dir, device=args.device)


def open_verifier(args: argparse.Namespace, retriever: Retriever) -> Verifier | str:
    """Make the verifier that the options ask for, else the system's; `none` where nobody asks for one.

    Raises:
        QamDetrError: Settings that the verifier cannot use, or settings without a verifier.
    """
    from qamdetr.inference.verifiers.registry import get_verifier

    name = args.verifier or retriever.verifier
    settings: VerifierConfig = retriever.verifier_settings
    given = {"model": args.verifier_model, "url": args.verifier_url}
    for option, value in given.items():
        if value is not None and name in ("none", "pocket"):
            raise QamDetrError(f"--verifier-{option} goes with --verifier qwen2.5-omni or server; verifier {name!r} has none.")
    settings = replace(settings, **{option: value for option, value in given.items() if value is not None})
    return get_verifier(name, settings) or name


def retrieve(
    retriever: Retriever, path: str, queries: Sequence[str], verifier: Verifier | str, args: argparse.Namespace, failures: list[str]
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
    from qamdetr.inference.system import load_system

    return load_system(args.system, args.overrides, members=args.members or ())


def _encoder_models(args: argparse.Namespace) -> dict[str, str]:
    models = {}
    for item in args.encoders:
        stream, separator, model = item.partition("=")
        if not separator or not stream or not model:
            raise QamDetrError(f"--encoder {item!r} is not of the form STREAM=ID_OR_FOLDER, such as wavlm_base=microsoft/wavlm-base.")
        models[stream] = model
    return models
