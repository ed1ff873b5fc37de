"""Systems: recipes of several checkpoints, a way to merge their candidates, and a verifier; the report's submissions are four of them.

A recipe is a YAML file, strict and with `extends:` like an experiment's (`qamdetr.config`); `qamdetr/configs/systems` holds some.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from qamdetr.config import CONFIG_DIR, SYSTEM_DIR, Count, InferenceConfig, Share, VerifierConfig, apply_overrides, build, read_yaml, section
from qamdetr.data.manifest import QueryEntry
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.inference.checkpoint import find_checkpoint, load_changed
from qamdetr.inference.ensemble import EnsembleRetriever, SeparateEncoders, SharedEncoders
from qamdetr.inference.from_features import open_stored
from qamdetr.inference.pools import MergeMethod, check_merge
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.inference.trained_encoder import ComboEncoder, check_streams, open_encoder, streams_of
from qamdetr.verifiers.base import DEFAULT_VERIFIER
from qamdetr.verifiers.registry import check_verifier

MEMBER_SECTIONS = ("data.", "inference.")
"""Overrides that begin so are no settings of a system; each member takes them."""

_OF_A_RUN = re.compile(r"runs/(?P<config>[^/]+)-s(?P<seed>\d+)/best")


@section
class Member:
    """One checkpoint of a system."""

    checkpoint: str  # a name or a folder, such as runs/combo_a_finetune-s0/best
    weight: float = 1.0  # of its word in merging; see `pools.merge_pools`
    overrides: tuple[str, ...] = ()  # `section.key=value` changes of its data or inference section

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"The weight of member {self.checkpoint} is {self.weight}; it must be above 0.")


@section
class SystemConfig:
    """One system."""

    members: Mapping[str, Member]  # any name -> member; a file may also list checkpoints, which then are their own names
    merge: MergeMethod = "nms"  # the report does not say; docs/submissions.md compares the three
    merge_iou: float = 0.7  # nms drops windows that overlap a better one by more; fusion joins those that overlap so much
    verify_with: str = DEFAULT_VERIFIER  # name of the verifier; its settings are the section `verifier`, as in a checkpoint
    beta: Share = InferenceConfig.beta
    top_k: Count = InferenceConfig.top_k  # merged candidates that the verifier sees
    verifier: VerifierConfig = field(default_factory=VerifierConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.members:
            raise ConfigError("members is empty; a system needs at least one checkpoint.")
        check_merge(self.merge, self.merge_iou)
        check_verifier(self.verify_with)
        _check_doubles(self.members)


def load_system(name_or_path: str | Path, overrides: Sequence[str] = (), *, members: Sequence[str] = ()) -> SystemConfig:
    """Read a system.

    Args:
        name_or_path: Name of one in `qamdetr/configs/systems`, such as `submit1`, or a YAML file.
        overrides: `key=value`; those of `MEMBER_SECTIONS`, such as `data.feature_dir=features`, change each member, after its own.
        members: Checkpoints in the place of the recipe's.

    Raises:
        ConfigError: Unknown file, key, type or value, a circular `extends`, a checkpoint named twice, or a malformed override.
    """
    of_members = tuple(override for override in overrides if override.startswith(MEMBER_SECTIONS))
    values = read_yaml(str(name_or_path), SYSTEM_DIR, "system")
    if members:
        values["members"] = list(members)
    _name_members(values)
    apply_overrides(values, [override for override in overrides if override not in of_members])
    _name_members(values)
    _name_verifier(values)
    system = build(SystemConfig, values)
    changed = {name: replace(member, overrides=(*member.overrides, *of_members)) for name, member in system.members.items()}
    return replace(system, members=changed)


def open_system(system: SystemConfig, *, device: str | None = None, encoder_models: Mapping[str, str] | None = None) -> EnsembleRetriever:
    """Open a system for recordings; each encoder is opened, and runs on a recording, once, however many members read it.

    Args:
        system: From `load_system`.
        device: See `MomentRetriever.from_pretrained`.
        encoder_models: Likewise.

    Raises:
        CheckpointError: Members are missing (all are named at once), or a checkpoint or its encoders cannot be used.
        ConfigError: An override changes a network, there is no such device, or `encoder_models` names a stream that no member has.
    """
    check_members(system)
    loaded = [(member.checkpoint, *load_changed(member.checkpoint, member.overrides)) for member in system.members.values()]
    check_streams(encoder_models or {}, {checkpoint: config for checkpoint, _, config in loaded})
    retrievers, encoders = [], []
    for checkpoint, model, config in loaded:
        own = {stream: named for stream, named in (encoder_models or {}).items() if stream in streams_of(config)}
        encoders.append(open_encoder(config, checkpoint, device=device, models=own))
        retrievers.append(MomentRetriever(model, config, encoders[-1], device=device))
    models = [retriever.config.model for retriever in retrievers]
    streams = [(tuple(model.audio_streams), tuple(model.text_streams)) for model in models]
    return _assemble(system, retrievers, SharedEncoders(encoders, streams))


def open_stored_system(
    system: SystemConfig, entries: Sequence[QueryEntry], *, audio_dir: Path | None = None, device: str | None = None
) -> EnsembleRetriever:
    """Open a system for the recordings and queries of a manifest; each member reads the features that its `data` section names.

    Args:
        system: From `load_system`.
        entries: The manifest.
        audio_dir: See `from_features.open_stored`.
        device: Likewise.

    Raises:
        CheckpointError: Members are missing (all are named at once), or a checkpoint cannot be used.
        ConfigError: An override changes a network, or there is no such device.
        DataError: As `from_features.open_stored`.
    """
    check_members(system)
    retrievers = [
        open_stored(member.checkpoint, entries, member.overrides, audio_dir=audio_dir, device=device) for member in system.members.values()
    ]
    # Members that differ in their weights alone read the same files.
    encoders: dict[str, ComboEncoder] = {}
    for retriever in retrievers:
        data, model = retriever.config.data, retriever.config.model
        places = (data.feature_dir, data.combo, data.audio_features, data.text_features, model.audio_streams, model.text_streams)
        retriever.encoder = encoders.setdefault(repr(places), retriever.encoder)
    return _assemble(system, retrievers, SeparateEncoders([retriever.encoder for retriever in retrievers]))


def check_members(system: SystemConfig) -> None:
    """Look whether every member is there, before anything is loaded.

    Raises:
        CheckpointError: Names all that are missing, and the commands that train those that are runs of a shipped config.
    """
    problems = {name: _problem(member.checkpoint) for name, member in system.members.items()}
    missing = {name: problem for name, problem in problems.items() if problem}
    if not missing:
        return
    commands = _training_commands([system.members[name].checkpoint for name in missing])
    remedy = f"make them with {' and '.join(commands)}, or name others with --members" if commands else next(iter(missing.values()))
    shown = ", ".join(
        name if name == system.members[name].checkpoint else f"{name} ({system.members[name].checkpoint})" for name in missing
    )
    raise CheckpointError(f"{len(missing)} of the system's {len(system.members)} members are missing: {shown}; {remedy.rstrip('.')}.")


def _check_doubles(members: Mapping[str, Member]) -> None:
    """Refuse members that differ in nothing but how the folder is written, and in their weight.

    Raises:
        ConfigError: Names two of them.
    """
    known: dict[tuple[Path, tuple[str, ...]], str] = {}
    for name, member in members.items():
        other = known.setdefault((_place(member.checkpoint), member.overrides), name)
        if other != name:
            raise ConfigError(
                f"members {other} and {name} are one checkpoint, {member.checkpoint}; name it once, with a weight where it counts more."
            )


def _place(checkpoint: str) -> Path:
    try:
        return find_checkpoint(checkpoint).resolve()
    except CheckpointError:
        return Path(checkpoint).resolve()


def _problem(checkpoint: str) -> str:
    """Say why there is no such checkpoint; empty when there is."""
    try:
        find_checkpoint(checkpoint)
    except CheckpointError as error:
        return str(error)
    return ""


def _training_commands(checkpoints: Sequence[str]) -> list[str]:
    """Commands that make these folders, one per config."""
    seeds: dict[str, list[str]] = {}
    for checkpoint in checkpoints:
        run = _OF_A_RUN.fullmatch(checkpoint)
        if run is not None and (CONFIG_DIR / f"{run['config']}.yaml").is_file():
            seeds.setdefault(run["config"], []).append(run["seed"])
    return [f"`python train.py --config {config} --seeds {' '.join(of_config)}`" for config, of_config in seeds.items()]


def _assemble(system: SystemConfig, members: Sequence[MomentRetriever], encoder: SeparateEncoders | SharedEncoders) -> EnsembleRetriever:
    return EnsembleRetriever(
        members,
        encoder,
        weights=[member.weight for member in system.members.values()],
        merge=system.merge,
        merge_iou=system.merge_iou,
        verifier=system.verify_with,
        beta=system.beta,
        top_k=system.top_k,
        verifier_settings=system.verifier,
    )


def _name_members(values: dict[str, Any]) -> None:
    """Bring the short forms of `members` to the long one: a list of checkpoints, and a checkpoint in the place of its section.

    Raises:
        ConfigError: A checkpoint is listed twice, or an entry of the list names none.
    """
    members = values.get("members")
    if isinstance(members, list):
        named: dict[str, Any] = {}
        for item in members:
            name = item.get("checkpoint") if isinstance(item, dict) else item
            if not isinstance(name, str) or not name:
                raise ConfigError(f"members lists {item!r}; each must be a checkpoint, or a section with the key `checkpoint`.")
            if name in named:
                raise ConfigError(f"members lists {name} twice; name each checkpoint once, with a weight where it counts more.")
            named[name] = item
        members = named
    if isinstance(members, dict):
        members = {str(name): {"checkpoint": item} if isinstance(item, str) else item for name, item in members.items()}
    values["members"] = {} if members is None else members


def _name_verifier(values: dict[str, Any]) -> None:
    """Read a bare `no`, which is False in YAML 1.1, as the verifier `none`.

    Raises:
        ConfigError: The section of settings holds a name.
    """
    if isinstance(values.get("verifier"), (str, bool)):
        raise ConfigError(f"verifier is {values['verifier']!r}; a system names its verifier in `verify_with`, here stand its settings.")
    if values.get("verify_with") is False:
        values["verify_with"] = DEFAULT_VERIFIER
