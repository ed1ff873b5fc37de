"""`MomentRetriever`: the Python API. One checkpoint or several, their encoders and a verifier behind `encode` and `retrieve`.

A system is a recipe of several checkpoints, a way to merge their candidates, and a verifier; the report's four submissions are such. It is
a YAML file, strict and with `extends:` like an experiment's (`qamdetr.config`); `qamdetr/configs/systems` holds some.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, TypeAlias, TypeVar, overload

import numpy as np
import torch
from pydantic import BeforeValidator

from qamdetr.audio import Sound, find_recordings
from qamdetr.config import (
    CONFIG_DIR,
    SYSTEM_DIR,
    Config,
    Count,
    InferenceConfig,
    Number,
    Share,
    VerifierConfig,
    apply_overrides,
    between,
    build,
    read_yaml,
    section,
)
from qamdetr.data.dataset import MomentDataset
from qamdetr.data.manifest import QueryEntry, names_in
from qamdetr.errors import CheckpointError, ConfigError, DataError, QamDetrError
from qamdetr.features import base as encoders
from qamdetr.features.bank import likest
from qamdetr.features.base import COMBOS, OPEN, STREAMS, Combo, Step, Streams, finish, get_combo, joint_of
from qamdetr.features.known import Kind, KnownSounds, Understood
from qamdetr.features.pipeline import prepare
from qamdetr.features.pocket import Pocket
from qamdetr.features.store import FeatureStore, describe_settings, require_features
from qamdetr.inference import sections as long_audio
from qamdetr.inference.candidates import Decoded, DecodeProtocol, answers, overlap_limit
from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT, find_checkpoint, load_checkpoint
from qamdetr.inference.pools import MergeMethod, merge_pools
from qamdetr.inference.rerank import Ranking, is_double, mark_likely, on_file_clock, rank
from qamdetr.model.qam_detr import QamDetr
from qamdetr.types import Heard, Moment, Recording, Result, TextFeatures, Tier, Window
from qamdetr.verifiers import base as verifiers
from qamdetr.verifiers.base import DEFAULT_VERIFIER, Verifier, check_verifier

if TYPE_CHECKING:
    from typing_extensions import Self  # in `typing` from Python 3.11 on

POCKET = Pocket.name
MIN_SILENCE_SECONDS = 0.05
MOST_HEARD, MOST_COUNTED = 20, 100  # kinds that `heard` asks for, and moments of each that it counts

_PAIRS_PER_FORWARD = 8  # of section and query, through the network at once; bounds memory for long recordings and many queries
_INVISIBLE = {"Cc", "Cf"}  # Unicode categories of control and format characters, such as the zero-width space
_OF_A_RUN = re.compile(r"runs/(?P<config>[^/]+)-s(?P<seed>\d+)/best")

MEMBER_SECTIONS = ("data.", "inference.")
"""Overrides that begin so are no settings of a system; each member takes them."""

_Encoder = TypeVar("_Encoder")

Source: TypeAlias = "str | Path | BinaryIO | tuple[np.ndarray, int]"
"""What `audio.Sound` opens."""


@section
class MemberConfig:
    """One checkpoint of a system."""

    checkpoint: str  # a name or a folder, such as runs/combo_a_finetune-s0/best
    weight: Annotated[Number, between(1e-6, 1e6)] = 1.0  # of its word in merging; see `pools.merge_pools`
    overrides: tuple[str, ...] = ()  # `section.key=value` changes of its data or inference section


@section
class SystemConfig:
    """Several checkpoints that answer as one."""

    members: Mapping[str, MemberConfig]  # any name -> member; a file may also list checkpoints, which then are their own names
    merge: MergeMethod = "nms"  # the report does not say; docs/submissions.md compares the three
    merge_iou: Share = 0.7  # nms drops windows that overlap a better one by more; fusion joins those that overlap so much
    # Name of the verifier; its settings are the section `verifier`, as in a checkpoint. YAML 1.1 reads a bare `no` as False.
    verify_with: Annotated[str, BeforeValidator(lambda value: DEFAULT_VERIFIER if value is False else value)] = DEFAULT_VERIFIER
    beta: Share = InferenceConfig.beta
    top_k: Count = InferenceConfig.top_k  # merged candidates that the verifier sees
    verifier: VerifierConfig = field(default_factory=VerifierConfig)

    def __post_init__(self) -> None:
        """Refuse no members, and a verifier that is not known."""
        if not self.members:
            raise ConfigError("members is empty; a system needs at least one checkpoint.")
        check_verifier(self.verify_with)


def load_system(name_or_path: str | Path, overrides: Sequence[str] = (), *, members: Sequence[str] = ()) -> SystemConfig:
    """Read a system: one of `qamdetr/configs/systems`, such as `submit1`, or a YAML file; `members` take the place of the recipe's.

    `overrides` are `key=value`; those of `MEMBER_SECTIONS`, such as `data.feature_dir=features`, change each member, after its own.
    """
    of_members = tuple(override for override in overrides if override.startswith(MEMBER_SECTIONS))
    values = read_yaml(str(name_or_path), SYSTEM_DIR, "system")
    if members:
        values["members"] = list(members)
    _name_members(values)
    apply_overrides(values, [override for override in overrides if override not in of_members])
    _name_members(values)
    if isinstance(values.get("verifier"), (str, bool)):
        raise ConfigError(f"verifier is {values['verifier']!r}; a system names its verifier in `verify_with`, here stand its settings.")
    system = build(SystemConfig, values)
    changed = {name: replace(member, overrides=(*member.overrides, *of_members)) for name, member in system.members.items()}
    return replace(system, members=changed)


def _name_members(values: dict[str, Any]) -> None:
    """Bring the short forms of `members` to the long one: a list of checkpoints, and a checkpoint in the place of its section."""
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


@dataclass(frozen=True)
class Member:
    """One checkpoint of a retriever."""

    model: QamDetr
    config: Config
    weight: float = 1.0  # of its word in merging, above 0
    audio: Mapping[str, str] = field(default_factory=dict)  # stream that the network reads -> its name in the retriever, if another
    text: Mapping[str, str] = field(default_factory=dict)

    def heard(self, recording: Recording) -> Recording:
        """Return a recording as the network reads it: its streams alone, main stream first; one of another hop is a `ConfigError`."""
        own, given = self.config.model.clip_seconds, recording.clip_seconds
        if given != own:
            what = f"{recording.name} was encoded in clips of {given:g} s, and this checkpoint reads clips of {own:g} s"
            raise ConfigError(what, "encode it again, with this checkpoint's own retriever")
        streams = {name: recording.streams[self.audio.get(name, name)] for name in self.config.model.audio_streams}
        return replace(recording, streams=streams)

    def read(self, text: Mapping[str, TextFeatures]) -> dict[str, TextFeatures]:
        """Return an encoded query likewise."""
        return {name: text[self.text.get(name, name)] for name in self.config.model.text_streams}

    @torch.inference_mode()
    def decode(
        self,
        recording: Recording,
        texts: Sequence[Mapping[str, TextFeatures]],
        *,
        protocol: DecodeProtocol = "exact",
        bypass: Collection[str] = (),
    ) -> list[Decoded]:
        """Run the network on every section for every query; per query the merged candidates and the saliency.

        Recording and queries may hold more streams than the network reads, in any order.
        """
        settings, heard = self.config.inference, self.heard(recording)
        hop, lengths = heard.clip_seconds, (settings.section_clips, settings.section_overlap_clips)
        sections = long_audio.split(heard.num_clips, *lengths, hop)
        pairs = [(self.read(text), section) for text in texts for section in sections]
        decoded: list[Decoded] = []
        for begin in range(0, len(pairs), _PAIRS_PER_FORWARD):
            chunk = pairs[begin : begin + _PAIRS_PER_FORWARD]
            # Where all pairs are of one section, its audio is prepared and projected once for all of them.
            parts = sections if len(sections) == 1 else [section for _, section in chunk]
            batch = prepare([section.cut(heard.streams) for section in parts], [text for text, _ in chunk], heard.bank)
            output = self.model(batch.to(next(self.model.parameters()).device), bypass=bypass)
            durations = [section.seconds(heard.duration_seconds - heard.unheard_seconds) for _, section in chunk]
            clips = [section.num_clips for _, section in chunk]
            decoded += answers(output, durations, clips, settings, protocol=protocol, clip_seconds=hop)
        nms_iou = overlap_limit(settings, protocol, dense=self.config.model.decoder == "dense")
        merged = []
        for at in range(0, len(pairs), len(sections)):
            found, curves = zip(*decoded[at : at + len(sections)], strict=True)
            moments = long_audio.merge_candidates(sections, found, heard.duration_seconds - heard.unheard_seconds, nms_iou)
            merged.append(_on_its_clock(Decoded(moments, long_audio.merge_saliency(sections, curves)), heard))
        return merged


class MomentRetriever:
    """Finds the moments of recordings that match sentences. Holds no state of a user; threads may share one.

    Example:
        >>> retriever = MomentRetriever.from_pretrained()
        >>> recording = retriever.encode("walk.wav")
        >>> likely = [moment for moment in retriever.retrieve(recording, "a dog barks").moments if moment.likely]

    Attributes:
        members: One checkpoint, or several that answer as one; `config` is the first's.
        encoder: Encodes recordings and queries for all of them.
        verifier: Name of the verifier that answers where none is named; `verifier_settings` are of those given by name.
    """

    def __init__(self, members: Sequence[Member], encoder: Streams | StoredFeatures, system: SystemConfig | None = None) -> None:
        """Put members together; `system` says how several answer as one, and None is one checkpoint by its own settings."""
        self.members = tuple(members)
        self.encoder = encoder
        self.config = self.members[0].config
        self._system = system
        self.verifier = system.verify_with if system else DEFAULT_VERIFIER
        self.verifier_settings = system.verifier if system else self.config.verifier
        self._made = functools.cache(lambda name: verifiers.make_verifier(name, self.verifier_settings))

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path = DEFAULT_CHECKPOINT,
        *,
        overrides: Sequence[str] = (),
        device: str | None = None,
        encoder_models: Mapping[str, str] | None = None,
    ) -> Self:
        """Load a checkpoint, by the name of a shipped one or its folder, and the encoders that it was trained on.

        `overrides` change its configuration, such as `inference.nms_iou=1`. Network and encoders run on `device`, such as `cuda`; None
        leaves the network on the CPU, and the encoders to themselves. `encoder_models` (stream -> hub id or folder) go over the
        checkpoint's `data.encoder_models`.

        Raises:
            CheckpointError: The checkpoint, or its encoders' weights, cannot be used.
        """
        model, config = load_checkpoint(name_or_dir, overrides)
        encoder = open_encoder(config, name_or_dir, device=device, models=encoder_models)
        return cls([Member(_move(model, device), config)], encoder)

    @classmethod
    def from_system(cls, system: SystemConfig, *, device: str | None = None, encoder_models: Mapping[str, str] | None = None) -> Self:
        """Open a system as `from_pretrained` a checkpoint; each encoder runs on a recording once, however many members read it."""
        _check_members(system)
        loaded = [(member, *load_checkpoint(member.checkpoint, member.overrides)) for member in system.members.values()]
        hop = _one_hop({member.checkpoint: config for member, _, config in loaded})
        models = encoder_models or {}
        _check_streams(models, {member.checkpoint: config for member, _, config in loaded})
        audio: dict[str, Any] = {}
        text: dict[str, Any] = {}
        members, names = [], []
        for member, model, config in loaded:
            own = {stream: named for stream, named in models.items() if stream in _streams_of(config)}
            opened = open_encoder(config, member.checkpoint, device=device, models=own)
            names.append(opened.name)
            keys = (_join(audio, opened.audio, config.model.audio_streams), _join(text, opened.text, config.model.text_streams))
            members.append(Member(_move(model, device), config, member.weight, *keys))
        return cls(members, Streams("+".join(dict.fromkeys(names)), audio, text, hop), system)

    @classmethod
    def from_features(
        cls,
        source: str | Path | SystemConfig,
        entries: Sequence[QueryEntry],
        *,
        overrides: Sequence[str] = (),
        audio_dir: Path | None = None,
        device: str | None = None,
    ) -> Self:
        """Open a checkpoint or a system for the recordings and queries of a manifest, whose features lie where `data` says.

        `encode` then takes a `vid`; queries go by their wording. `audio_dir` holds the recordings, where they are at hand: it tells apart
        features of recordings with the same name, and lets verifiers listen. `overrides` are for a checkpoint.

        Raises:
            DataError: Features are missing (all are named at once), damaged, of other recordings, or from another version of the encoders.
        """
        system = source if isinstance(source, SystemConfig) else None
        if system:
            _check_members(system)
        wanted = list(system.members.values()) if system else [MemberConfig(str(source), overrides=tuple(overrides))]
        audio = find_recordings(audio_dir) if audio_dir and audio_dir.is_dir() else {}
        stored = StoredFeatures(entries, audio)
        members = []
        for member in wanted:
            model, config = load_checkpoint(member.checkpoint, member.overrides)
            members.append(Member(_move(model, device), config, member.weight, *stored.add(member.checkpoint, config)))
        stored.clip_seconds = _one_hop({member.checkpoint: made.config for member, made in zip(wanted, members, strict=True)})
        return cls(members, stored, system)

    def encode(self, source: Source, **choice: Any) -> Recording:  # noqa: ANN401 - as `Sound`
        """Encode a recording once; any number of queries may follow.

        `source` is a file, an open one, or samples with their rate; of a retriever on stored features, the `vid`. `choice` is what of it to
        hear: `channel`, `track`, `start_seconds`, `end_seconds`, `max_seconds`; see `audio.Sound`.

        Raises:
            AudioError: It cannot be used.
        """
        return finish(self.encoding(source, **choice))

    def encoding(self, source: Source, **choice: Any) -> Generator[Step, None, Recording]:  # noqa: ANN401 - as `Sound`
        """Do what `encode` does step by step: yields what is being done and how far that is. Closing the generator stops the work."""
        if isinstance(self.encoder, StoredFeatures):
            return self.encoder.recording(str(source))
        sound = Sound(source, **choice)
        # Clips are counted from the first sound on, so that silence in front of a recording changes nothing but the clock.
        if (silent := sound.silent_seconds()) >= MIN_SILENCE_SECONDS:
            sound.unheard_seconds = silent
        recording = yield from self.encoder.encoding(sound)
        return replace(recording, choice=choice)

    def retrieve(self, recording: Recording, query: str, **options: Any) -> Result:  # noqa: ANN401 - as `retrieve_many`
        """Answer one query; takes the options of `retrieve_many`."""
        return self.retrieve_many(recording, [query], **options)[0]

    @torch.inference_mode()
    def retrieve_many(
        self,
        recording: Recording,
        queries: Sequence[str],
        *,
        top_k: int = 10,
        verifier: str | Verifier | None = None,
        beta: float | None = None,
        protocol: DecodeProtocol = "exact",
        bypass: Collection[str] = (),
        texts: Sequence[Mapping[str, TextFeatures]] | None = None,
    ) -> list[Result]:
        """Answer several queries on one recording, in their order.

        With several members, the sound counts as found when their best decoder scores, in the weighted mean, reach the weighted mean of
        their calibrated thresholds: each is compared with its own, and the best of many is not taken for the opinion of all. The score map
        of one checkpoint says nothing of merged scores, which stay as they are.

        Args:
            recording: From `encode`, or any that holds the streams of every member.
            queries: Sentences.
            top_k: Most moments to return for each.
            verifier: A verifier or its name; None takes the system's, `none` for one checkpoint. It looks at the best candidates (`top_k`
                of the settings, or `top_k` if that is more). When it fails, the decoder's ranking stands and a note in the result says
                so. One that compares features gets those of the first member that has a joint space.
            beta: Weight of the verifier's score, in [0, 1]; None takes the settings' for this verifier. Without verifier, results say 0.
            protocol: `official` rounds windows as the field's evaluation does; see `rerank.round_officially`.
            bypass: Components to leave out of the networks; see `QamDetr.forward`.
            texts: The queries as they are to be read, in the place of what the encoders make of their words, which are then not judged.
        """
        verifier = self.verifier if verifier is None else verifier
        checker = self._made(verifier) if isinstance(verifier, str) else verifier
        if beta is None:
            own = self._system or self.config.inference
            beta = own.beta if self._system or checker is None else self.config.inference.beta_by_verifier.get(checker.name, own.beta)
        thresholds = np.array([(own.found_threshold, own.perhaps_threshold) for own in (m.config.inference for m in self.members)])
        calibration = () if self._system else self.config.inference.score_calibration  # of one checkpoint's scores, not of merged ones
        verified_k = self._system.top_k if self._system else self.config.inference.top_k
        found, perhaps = self._mean(thresholds).tolist()
        ranking = Ranking(checker, beta, top_k, verified_k, (found, perhaps), self.encoder.name, calibration, protocol)
        if isinstance(queries, str):
            raise QamDetrError(f"The queries are one sentence, {queries!r}", "give a list of sentences, or use `retrieve`")
        given, known = texts is not None, self._known_sounds()
        texts = texts or [self.encoder.encode_query(check_query(query)) for query in queries]
        by_member = [member.decode(recording, texts, protocol=protocol, bypass=bypass) for member in self.members]
        recordings, results = [member.heard(recording) for member in self.members], []
        sounds = any(bool(next(iter(each.streams.values())).any()) for each in recordings)  # where all is silent, nothing is found
        for query, text, decoded in zip(queries, texts, zip(*by_member, strict=True), strict=True):
            best = np.array([answer.best_score for answer in decoded])
            reached = self._mean(best[:, None] - thresholds) >= 0 if sounds and any(one.candidates for one in decoded) else (False, False)
            tier: Tier = "found" if reached[0] else "perhaps" if reached[1] else "nothing found"
            views = [(each, member.read(text)) for each, member in zip(recordings, self.members, strict=True)]
            heard, read = next((view for view in views if next(iter(view[1].values())).pooled is not None), views[0])
            words = Understood(True) if given or known is None else known.understand(query, text[POCKET])
            results.append(rank(heard, query, read, self._merge(decoded), ranking, tier=tier, words=words))
        return results

    def heard(self, recording: Recording) -> list[Heard]:
        """Say which of the known sounds are in a recording, the surest first: the likeliest by their vectors, each asked for by name.

        A moment counts where its own vector is near the kind; who asks for everything would be told much that is not there. A kind whose
        moments are those of a surer one that is near to it (a rooster, a hen) is left out.

        Raises:
            ConfigError: The encoders have no table of known sounds.
        """
        known = self._known_sounds(must=True)
        kinds = known.likeliest(recording.streams[POCKET], MOST_HEARD)
        wordings = [kind.wordings[0] for kind in kinds]
        texts = [self.encoder.encode_query(wording) for wording in wordings]
        results = self.retrieve_many(recording, wordings, texts=texts, top_k=MOST_COUNTED)
        perhaps = float(self._mean([np.asarray(member.config.inference.perhaps_threshold) for member in self.members]))
        kept: list[tuple[Kind, list[Moment], Heard]] = []
        answered: list[tuple[Kind, Result, list[Moment]]] = []
        for kind, result in zip(kinds, results, strict=True):
            marked = result.moments if result.found else mark_likely(result.moments, found=result.perhaps, threshold=perhaps)
            moments = [moment for moment in marked if moment.likely and known.names(kind, _mean_clip(recording, moment.window))]
            answered += [(kind, result, moments)] * bool(moments)
        for kind, result, moments in sorted(answered, key=lambda row: -row[2][0].score):
            near = [other for name, others, _ in kept if known.are_near(kind, name) for other in others]
            if any(not any(is_double(moment, other) for other in near) for moment in moments):
                kept.append((kind, moments, Heard(kind.name, kind.wordings[0], len(moments), moments[0].score, result.tier)))
        return [row for *_, row in kept]

    def retrieve_like(self, recording: Recording, window: Window, **options: Any) -> Result:  # noqa: ANN401 - as `retrieve_many`
        """Find what sounds like a window `(start, end)` of the recording, in seconds of its file; takes the options of `retrieve_many`.

        The window's mean vector, put in words, stands where that of a sentence does, beside the tokens of the kind it is likeliest to be.

        Raises:
            QamDetrError: It is no window, or nothing of it was encoded.
            ConfigError: The encoders have neither a table of known sounds nor a joint space.
        """
        known = self._known_sounds(must=True) if recording.bank is None else None
        if not (math.isfinite(window[0]) and math.isfinite(window[1]) and window[0] < window[1]):
            raise QamDetrError(f"The window is {window}", "give its start and its end in seconds, the end after the start")
        mean = _mean_clip(recording, window)
        if not mean.any():
            end = recording.start_seconds + recording.duration_seconds
            what = f"There is nothing to hear from {window[0]:g} to {window[1]:g} s of {recording.name}"
            raise QamDetrError(what, f"choose a window with sound between {recording.start_seconds:g} and {end:g} s")
        if known is None:
            assert recording.bank is not None
            wording, pooled = likest(mean, recording.bank)
        else:
            wording, pooled = known.likeliest(mean[None], 1)[0].wordings[0], known.in_words(mean)
        text = {name: replace(each, pooled=pooled) for name, each in self.encoder.encode_query(wording).items()}
        query = f"like {window[0]:g}-{window[1]:g} s (nearest known: {wording})"
        return self.retrieve_many(recording, [query], texts=[text], **options)[0]

    @overload
    def _known_sounds(self, *, must: Literal[True]) -> KnownSounds: ...
    @overload
    def _known_sounds(self) -> KnownSounds | None: ...
    def _known_sounds(self, *, must: bool = False) -> KnownSounds | None:
        """Return the table of known sounds, where all words go through the pocket encoder; None, or an error if it `must` be there."""
        opened = self.encoder.text if isinstance(self.encoder, Streams) and self.encoder.joint is None else {}
        pocket = opened.get(POCKET) if len(opened) == 1 else None
        known = pocket.known_sounds if isinstance(pocket, Pocket) else None
        if must and known is None:
            what = f"The {self.encoder.name} encoders come without a table of known sounds"
            remedy = f"take a checkpoint on the pocket encoders, such as {DEFAULT_CHECKPOINT}, with the table that is theirs"
            raise ConfigError(what, remedy)
        return known

    def _merge(self, decoded: Sequence[Decoded]) -> Decoded:
        if self._system is None:
            return decoded[0]
        pools, weights = [answer.candidates for answer in decoded], [member.weight for member in self.members]
        merged = merge_pools(pools, self._system.merge, iou=self._system.merge_iou, weights=weights)
        # Public features of two sources may differ by a clip at the end.
        clips = min(len(answer.saliency) for answer in decoded)
        return Decoded(merged, torch.from_numpy(self._mean([answer.saliency[:clips].numpy() for answer in decoded])))

    def _mean(self, values: np.ndarray | list[np.ndarray]) -> np.ndarray:
        """Weighted mean over the members, `(members, ...)` to `(...)`."""
        return np.asarray(np.average(values, axis=0, weights=[member.weight for member in self.members]))


class StoredFeatures:
    """Stands where encoders stand, and gives what they gave when the features of a manifest were stored: by `vid`, and by wording."""

    def __init__(self, entries: Sequence[QueryEntry], audio: Mapping[str, Path]) -> None:
        """Bind a manifest to its recordings, `vid` -> file, where they are at hand, for verifiers that listen."""
        self._entries = entries
        self._by_vid = {entry.vid: entry for entry in entries}
        self._by_query = {entry.query: entry for entry in entries}
        self._audio = audio
        self._stores: dict[str, tuple[str, FeatureStore]] = {}
        self.name, self.clip_seconds = "", 1.0

    def add(self, checkpoint: str, config: Config) -> tuple[dict[str, str], dict[str, str]]:
        """Read the features that a checkpoint needs, too; returns what its audio and its text streams are called here, see `Member`."""
        data, model = config.data, config.model
        streams = (model.audio_streams, model.text_streams, model.clip_seconds)
        key = repr((data.feature_dir, data.combo, data.audio_features, data.text_features, streams))
        if key not in self._stores:
            suffix = f"#{len(self._stores) + 1}" if self._stores else ""
            self._stores[key] = (suffix, FeatureStore(model, data, self._audio))
        suffix, store = self._stores[key]
        require_features([(store, *names_in(self._entries))])
        store.check(*names_in(self._entries[:1]))
        MomentDataset(self._entries, store)  # refuses features of another length than the manifest says
        found, wanted = _own_versions(store.encoder_version(*names_in(self._entries))), _own_versions(data.encoder)
        if found and wanted and found != wanted:
            models, dtype = store.settings
            ours = f" ({describe_settings(models, dtype)})" if dtype else ""
            theirs = f" ({describe_settings(data.encoder_models, data.encoder_dtype)})" if dtype else ""
            what = f"{data.feature_dir} holds features of encoder version {', '.join(found)}{ours}, {checkpoint} was trained on version "
            raise DataError(f"{what}{', '.join(wanted)}{theirs}", "extract with those encoders, or train again on these")
        self.name = "+".join(dict.fromkeys([*filter(None, self.name.split("+")), data.combo]))
        return {name: name + suffix for name in model.audio_streams}, {name: name + suffix for name in model.text_streams}

    def recording(self, vid: str) -> Recording:
        """Read the features of a recording; its audio is not opened, so there is no waveform to draw."""
        entry = self._by_vid[vid]
        streams = {name + suffix: rows for suffix, store in self._stores.values() for name, rows in store.audio(entry.vid).items()}
        facts = (entry.vid, str(self._audio.get(entry.vid, "")), entry.duration_seconds, streams, np.zeros((2, 0), np.float32))
        bank = next((store.bank for _, store in self._stores.values() if store.bank is not None), None)
        return Recording(*facts, clip_seconds=self.clip_seconds, bank=bank)

    def encode_query(self, query: str) -> dict[str, TextFeatures]:
        """Read the features of a query of the manifest."""
        qid = self._by_query[query].qid
        return {name + suffix: value for suffix, store in self._stores.values() for name, value in store.text(query, qid).items()}


def open_encoder(config: Config, checkpoint: str | Path, *, device: str | None = None, models: Mapping[str, str] | None = None) -> Streams:
    """Open the encoders of the streams that a checkpoint reads; `device` and `models` are those of `MomentRetriever.from_pretrained`.

    The encoders that made its own features must have the version that it was trained on; public features do not say theirs.
    """
    _check_streams(models or {}, {str(checkpoint): config})
    data, model = config.data, config.model
    if (OPEN in model.audio_streams) != bool(joint_of(data.combo)):
        if OPEN in model.audio_streams:
            raise CheckpointError(
                f"it hears in any joint space, and data.combo is {data.combo!r}", "set data.combo=open:STREAM", checkpoint
            )
        what = f"it reads features of {', '.join(model.audio_streams)} alone, and not of what data.combo={data.combo} says"
        raise CheckpointError(what, "take the checkpoint qam-detr-open for other encoders", checkpoint)
    models = {**data.encoder_models, **(models or {})}
    options: dict[str, Any] = {"models": models, "dtype": data.encoder_dtype, "device": device, "clip_seconds": model.clip_seconds}
    wanted = _own_versions(data.encoder)
    public = {*data.audio_features, *data.text_features}
    encoder: Streams | None = None
    if wanted or not (data.encoder or public):
        combo = _combo_of(config) or Combo(tuple(model.audio_streams), tuple(model.text_streams))
        encoder = encoders.open_streams(*combo, joint=joint_of(data.combo), name=data.combo, **options)
        if wanted and [encoder.fingerprint] != wanted:
            chosen = {stream: models.get(stream, "") for stream in _streams_of(config) if stream in STREAMS and STREAMS[stream].hub}
            opened = f" ({describe_settings(chosen, data.encoder_dtype)})" if chosen else ""
            remedy = "name the models and the type of its features with --encoder and --set data.encoder_dtype" if chosen else ""
            what = f"it was trained on version {', '.join(wanted)} of the {encoder.name} encoders, here is version {encoder.fingerprint}"
            remedy = f"{remedy or 'restore those encoders'}, or train again on these"
            raise CheckpointError(f"{what}{opened}; features would not fit", remedy, checkpoint)
    if encoder is None or public:
        encoder = encoders.open_streams(tuple(model.audio_streams), tuple(model.text_streams), **options)
    return encoder


def _own_versions(version: str) -> list[str]:
    """Parts of `data.encoder` that name encoders; the others name public files, whose digits differ from one data set to the next."""
    return [part for part in version.split("+") if part and not part.startswith("public-")]


def _streams_of(config: Config) -> list[str]:
    """Streams whose encoders a checkpoint may open: those of its network, and those of its combo."""
    combo = _combo_of(config)
    of_combo = (*combo.audio_streams, *combo.text_streams) if combo else ()
    return list(dict.fromkeys(name for name in (*config.model.audio_streams, *config.model.text_streams, *of_combo) if name != OPEN))


def _combo_of(config: Config) -> Combo | None:
    """Return the combo that a configuration names; None where it is made of public features, under a name of its own."""
    return get_combo(config.data.combo) if OPEN in config.model.audio_streams else COMBOS.get(config.data.combo)


def _check_streams(models: Mapping[str, str], configs: Mapping[str, Config]) -> None:
    """Refuse models for streams that no checkpoint (name -> its configuration) has."""
    known = dict.fromkeys(stream for config in configs.values() for stream in _streams_of(config))
    for stream in models:
        if stream not in known:
            verb = "has" if len(configs) == 1 else "have"
            raise ConfigError(f"--encoder: {', '.join(configs)} {verb} no stream {stream!r}, only {', '.join(known)}.")


def _check_members(system: SystemConfig) -> None:
    """Look whether every member is there, before anything is loaded; names all that are not, and the commands that train them."""
    missing: list[str] = []
    seeds: dict[str, list[str]] = {}
    remedy = ""
    for name, member in system.members.items():
        try:
            find_checkpoint(member.checkpoint)
        except CheckpointError as error:  # noqa: PERF203 - a few members
            missing.append(name if name == member.checkpoint else f"{name} ({member.checkpoint})")
            remedy = remedy or str(error)
            run = _OF_A_RUN.fullmatch(member.checkpoint)
            if run and (CONFIG_DIR / f"{run['config']}.yaml").is_file():
                seeds.setdefault(run["config"], []).append(run["seed"])
    if seeds:
        commands = [f"`python train.py --config {config} --seeds {' '.join(of_config)}`" for config, of_config in seeds.items()]
        remedy = f"make them with {' and '.join(commands)}, or name others with --members"
    if missing:
        raise CheckpointError(f"{len(missing)} of the system's {len(system.members)} members are missing: {', '.join(missing)}", remedy)


def _one_hop(configs: Mapping[str, Config]) -> float:
    """Return the hop of all checkpoints (name -> its configuration), or refuse those that differ: a recording is encoded in one."""
    hops = {name: config.model.clip_seconds for name, config in configs.items()}
    if len({*hops.values()}) > 1:
        told = ", ".join(f"{name} of {hop:g} s" for name, hop in hops.items())
        raise ConfigError(f"The members read clips of different lengths ({told})", "make a system of those that read the same")
    return next(iter(hops.values()))


def _join(union: dict[str, _Encoder], encoders: Mapping[str, _Encoder], wanted: Collection[str]) -> dict[str, str]:
    """Add the wanted streams to the union, unless they are there; two models of one stream stay apart. Returns stream -> its key there."""
    keys = {}
    for stream in wanted:
        same_name = [key for key in union if key.partition("#")[0] == stream]
        known = next((key for key in same_name if union[key] is encoders[stream]), None)
        keys[stream] = known or (f"{stream}#{len(same_name) + 1}" if same_name else stream)
        union[keys[stream]] = encoders[stream]
    return keys


def _move(model: QamDetr, device: str | None) -> QamDetr:
    try:
        return model if device is None else model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: a PyTorch without CUDA
        reason = str(error).split("\n", maxsplit=1)[0]
        what = f"The network cannot run on device {device!r} ({reason})"
        raise ConfigError(what, "choose cpu, or a device that PyTorch finds here") from error


def _on_its_clock(decoded: Decoded, heard: Recording) -> Decoded:
    """Count windows and saliency from the begin of a recording, and not from where it was first heard."""
    if not (unheard := heard.unheard_seconds):
        return decoded
    moved = [replace(m, start_seconds=m.start_seconds + unheard, end_seconds=m.end_seconds + unheard) for m in decoded.candidates]
    return Decoded(moved, on_file_clock(decoded.saliency, unheard, heard.duration_seconds, heard.clip_seconds))


def _mean_clip(recording: Recording, window: Window) -> torch.Tensor:
    """Sum the clips of a window `(start, end)` in seconds of the file, by how much of each is in it: `(dim,)`, of any length."""
    begins = recording.start_seconds + recording.unheard_seconds + recording.clip_seconds * torch.arange(recording.num_clips)
    shares = (begins + recording.clip_seconds).clamp(max=window[1]) - begins.clamp(min=window[0])
    return shares.clamp(min=0) @ recording.streams[POCKET if recording.bank is None else OPEN]


def check_query(query: str) -> str:
    """Return the query, or refuse one that cannot be read: nothing but blanks and invisible characters, or bytes that are not text."""
    if all(letter.isspace() or unicodedata.category(letter) in _INVISIBLE for letter in query):
        raise QamDetrError("The query is empty; describe the sound in a few words, such as 'a dog barks'.")
    if any("\ud800" <= letter <= "\udfff" for letter in query):
        raise QamDetrError(f"The query {query!a} holds bytes that are not UTF-8 text; type it again or convert it to UTF-8.")
    return query
