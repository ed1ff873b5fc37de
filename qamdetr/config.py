"""Configuration: these classes are the only defaults; YAML files and `--set a.b=c` are strict diffs on them, which pydantic checks."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_type_hints

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import dataclass_transform

from qamdetr.errors import ConfigError

_HERE = Path(__file__).resolve().parent
CONFIG_DIR, SYSTEM_DIR = _HERE / "configs", _HERE / "configs" / "systems"  # the latter: recipes of several checkpoints
SHIPPED_DIR = _HERE if (_HERE / "checkpoints").is_dir() else _HERE.parent  # a package carries what in the repository lies beside it
CHECKPOINT_DIR = Path(os.environ.get("QAMDETR_CHECKPOINTS") or SHIPPED_DIR / "checkpoints")

T = TypeVar("T")


def between(low: float, high: float) -> AfterValidator:
    """Limit a number to `[low, high]`; NaN is in no range."""

    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"is {value}; it must be from {low} to {high}.")
        return value

    return AfterValidator(check)


def one_of(*choices: float) -> AfterValidator:
    """Limit a number to some values."""

    def check(value: float) -> float:
        if value not in choices:
            raise ValueError(f"is {value}; it must be {' or '.join(map(str, choices))}.")
        return value

    return AfterValidator(check)


def _rising(knots: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """Refuse a map that would change the order of scores."""
    if any(one[axis] >= two[axis] for one, two in itertools.pairwise(knots) for axis in (0, 1)):
        raise ValueError(f"is {knots}; both numbers must rise from one pair to the next.")
    return knots


Whole = Annotated[int, Strict()]
# YAML 1.1 reads "1e-4" as a word, which a float takes; it would also take truth values. It reads a bare `no` as False.
Number = Annotated[float, BeforeValidator(lambda value: str(value) if isinstance(value, bool) else value)]
Precision = Annotated[Literal["auto", "no", "bf16", "fp16"], BeforeValidator(lambda value: "no" if value is False else value)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]  # an empty value in YAML
Streams = Annotated[Mapping[str, Annotated[Whole, between(0, 65536)]], Field(min_length=1)]
Share = Annotated[Number, between(0.0, 1.0)]
Weight = Annotated[Number, between(0.0, 1e6)]
Count = Annotated[Whole, between(1, 1_000_000)]
Layers = Annotated[Whole, between(1, 32)]
Knots = Annotated[tuple[tuple[Share, Share], ...], AfterValidator(_rising)]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def section(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that refuses unknown keys, wrong types and values out of range with a `ConfigError` of one line."""
    made: Any = pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)
    initialise = made.__init__

    @functools.wraps(initialise)
    def init(self: T, *args: Any, **values: Any) -> None:  # noqa: ANN401 - whatever the fields hold
        try:
            initialise(self, *args, **values)
        except ValidationError as error:
            raise ConfigError(_sentence(cls, error, cls.__name__.removesuffix("Config").lower())) from None

    made.__init__ = init
    return made  # type: ignore[no-any-return]


class Switch(NamedTuple):
    """A component of the network: a field of `ModelConfig`, its values `on` and `off`, and whether a trained network can leave it out."""

    field: str
    label: str
    bypassable: bool
    on: Any
    off: Any

    def is_on(self, model: ModelConfig) -> bool:
        """Whether `model` has the component."""
        return bool(getattr(model, self.field) == self.on)


def switch(default: T, label: str, *, bypassable: bool = False, on: str = "", off: str | bool = False) -> T:
    """Declare a field of `ModelConfig` to be the switch of a component that is on by default, unless `on` is another value."""
    return field(default=default, metadata={"switch": (label, bypassable, on or default, off)})


def switches() -> dict[str, Switch]:
    """List the components by the name that `QamDetr.forward` calls them in `bypass`: the field's, or the word for "on" in it."""
    found = [Switch(item.name, *item.metadata["switch"]) for item in dataclasses.fields(ModelConfig) if item.metadata]
    return {one.field if one.on is True else one.on: one for one in found}


@section
class ModelConfig:
    """The network (report section 2). Every component is a switch; the first stream of each modality is the main one."""

    audio_streams: Streams = field(default_factory=lambda: {"pocket": 256, "mel_stats": 24})
    text_streams: Streams = field(default_factory=lambda: {"pocket": 256})
    clip_seconds: Annotated[Number, one_of(1.0, 0.5)] = 1.0  # from one vector of the audio streams to the next; a checkpoint keeps its own
    dim: Annotated[Whole, between(1, 4096)] = 256
    num_heads: Annotated[Whole, between(1, 256)] = 8
    ffn_dim: Annotated[Whole, between(1, 16384)] = 1024
    dropout: Annotated[Number, between(0, 0.999)] = 0.1
    input_dropout: Annotated[Number, between(0, 0.999)] = 0.5
    similarity: Flag = False  # cosine of each clip with the pooled query as one more main audio column (needs a joint space)
    affinity: Flag = False  # inner products of clips with query, bank and other clips; alone where the main audio stream has width 0
    fusion: Literal["three_way", "text_to_audio"] = switch("three_way", "3-way fusion", bypassable=True, off="text_to_audio")
    fusion_layers: Layers = 2  # of text_to_audio; three_way is one pass of three blocks
    encoder: Literal["bimamba", "transformer"] = "bimamba"
    encoder_layers: Layers = 2
    mamba_state: Annotated[Whole, between(1, 256)] = 16
    mamba_conv: Annotated[Whole, between(1, 16)] = 4
    mamba_expand: Annotated[Whole, between(1, 8)] = 2
    global_token: Flag = False  # the baseline's learned token as query representation; otherwise the pooled refined text
    multiscale: Flag = switch(True, "multi-scale fusion", bypassable=True)
    multiscale_strides: tuple[Annotated[Whole, between(1, 256)], ...] = (2, 4)
    decoder: Literal["detr", "dense"] = switch("detr", "dense decoder", on="dense", off="detr")
    decoder_strides: tuple[Annotated[Whole, between(1, 256)], ...] = (1, 2, 4, 8)  # of dense: clips per cell, a level each
    decoder_layers: Layers = 2  # of detr, as the next
    num_moment_queries: Annotated[Whole, between(1, 1000)] = 10
    quality: Flag = switch(True, "quality in the ranking", bypassable=True)


@section
class LossConfig:
    """Weights of the training objective and of the Hungarian matching (DESIGN section 4).

    `span`, `giou`, `label`, `background_weight`, `quality_targets`, `auxiliary` and `match_*` are of the decoder `detr`.
    """

    inside: Weight = 1.0  # this and the next two are of the decoder `dense`
    ends: Weight = 1.0
    ends_giou: Weight = 2.0
    span: Weight = 10.0
    giou: Weight = 1.0
    label: Weight = 4.0
    label_loss: Literal["cross_entropy"] = "cross_entropy"  # the only one, which checkpoints name
    saliency: Weight = 1.0
    quality: Weight = 1.0
    background_weight: Weight = 0.1
    saliency_margin: Weight = 0.2
    saliency_temperature: Annotated[Number, between(1e-6, 1e6)] = 0.5
    saliency_contrast: Weight = 1 / 12  # of the rank-contrastive part: the official loop averages 12 label levels, 0/1 labels fill one
    saliency_negative: Literal["sum", "mean"] = "sum"  # over the clips of a recording in which the query is absent
    saliency_clip: Weight = 0.0  # of a cross-entropy per clip, which makes sigmoid(saliency) a posterior; 0 = off, as the official loss
    quality_targets: Literal["matched", "all"] = "matched"  # all: every moment query learns its best IoU (0 where there is no span)
    auxiliary: Flag = True
    match_span: Weight = 10.0
    match_giou: Weight = 1.0
    match_label: Weight = 4.0


@section
class DataConfig:
    """Where training data lies and how it is read. Folders are made by `python -m qamdetr synthesize` or hold the field's JSONL."""

    train_manifest: Text = ""
    val_manifest: Text = ""
    audio_dir: Text = ""
    val_audio_dir: Text = ""
    feature_dir: Text = "build/features"
    combo: Text = "pocket"
    more_spaces: tuple[Text, ...] = ()  # further combos open:STREAM; each batch of training is of one of them all
    space_bend: Share = 0.0  # how much a joint space is bent in training, anew for each batch: at 1, to what is hardly recognised
    audio_features: Mapping[str, Text] = field(default_factory=dict)  # stream -> folder of public {vid}.npz; others come from the cache
    text_features: Mapping[str, Text] = field(default_factory=dict)  # stream -> folder of public qid{qid}.npz
    saliency_windows: Literal["all", "first"] = "all"  # first: as the official loop, other true windows count as negatives
    negative_share: Share = 0.125  # of a batch's items (per process, rounded up) run once more with a query that is not about them
    negative_similarity: Share = 0.65  # no such query is closer (cosine) to a true one; 1: any in other words
    encoder: Text = ""  # version of the combo's encoders that a checkpoint was trained on; written when it is saved
    encoder_models: Mapping[str, Text] = field(default_factory=dict)  # stream -> hub id or folder in the place of the stream's default
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"  # of the big encoders' weights; the pocket encoders stay float32
    max_clips: Count = 300
    crop_probability: Annotated[Number, between(0, 1)] = 0.0  # chance of training on a random stretch of a recording, new each epoch
    text_noise: Annotated[Number, between(0, 100)] = 0.0  # standard deviation of noise on text features, relative to their size
    num_workers: Annotated[Whole, between(0, 1024)] = 0


@section
class TrainConfig:
    """The optimisation."""

    seed: Annotated[Whole, between(0, 2**32 - 1)] = 0
    epochs: Count = 200
    batch_size: Annotated[Whole, between(1, 65536)] = 32
    learning_rate: Annotated[Number, between(0, 1)] = 1e-4
    weight_decay: Annotated[Number, between(0, 1)] = 1e-4
    warmup_fraction: Annotated[Number, between(0, 1)] = 0.05
    schedule: Literal["constant", "cosine"] = "constant"
    clip_norm: Annotated[Number, between(0, math.inf)] = 0.1
    ema_decay: Annotated[Number, between(0, 1)] = 0.0  # of the averaged weights that are validated and saved; 0 = off
    accumulate_batches: Annotated[Whole, between(1, 65536)] = 1  # batches per optimiser step
    mixed_precision: Precision = "auto"  # auto: bf16 where GPU or CPU multiply in it, else float32
    save_every_steps: Annotated[Whole, between(0, 10**9)] = 0  # between saved states inside an epoch; 0 = at the end of each epoch only
    early_stop_epochs: Annotated[Whole, between(0, 10**6)] = 0  # stop when validation has not risen for so many epochs; 0 = never
    tracker: Text = "tensorboard"  # any tracker that Accelerate knows; "" = none
    output_dir: Text = "runs"
    init_from: Text = ""


@section
class InferenceConfig:
    """Ranking and answering."""

    beta: Share = 0.35
    beta_by_verifier: Mapping[str, Share] = field(default_factory=dict)  # verifier -> beta that `calibrate` chose; others take `beta`
    top_k: Count = 10
    nms_iou: Share = 0.7  # candidates that overlap a better one by more are dropped; 1.0 = keep all, but those of `dense`
    found_threshold: Share = 0.0  # decoder score under which a sound is not "found"; set by calibration
    perhaps_threshold: Share = 1.0  # and under this one it is not even "perhaps"; 1 = never perhaps
    score_calibration: Knots = ()  # [decoder score, probability that the moment is right], by lines between them; empty = as they are
    segment_threshold: Share = 0.0  # above 0, runs of clips whose saliency reaches it join the decoder's candidates
    segment_peak_share: Share = 0.4  # that threshold is lowered to this share of the curve's maximum, for wordings the model is unsure of
    section_clips: Count = 300  # longer recordings run in overlapping sections of this length
    section_overlap_clips: Annotated[Whole, between(0, 1_000_000)] = 60


@section
class VerifierConfig:
    """How verifiers run (`qamdetr.verifiers`). The key of a server comes from the environment alone, see there."""

    model: Text = ""  # hub id or folder (qwen2.5-omni), or the server's name of its model; empty = the verifier's default
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # auto: bfloat16 on a GPU that has it, else float32
    four_bit: Flag = False  # needs a GPU and the package bitsandbytes
    batch_size: Annotated[Whole, between(1, 1024)] = 4  # crops at once (qwen2.5-omni), or requests at once (server)
    url: Text = ""  # of an OpenAI-compatible server, such as http://localhost:8000/v1
    timeout_seconds: Annotated[Number, between(0.01, 86400)] = 60.0
    retries: Annotated[Whole, between(0, 100)] = 2
    cache_dir: Text = ""  # of the answers; empty = the user's cache folder


@section
class Config:
    """One experiment."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    weights_sha256: Text = ""  # of a checkpoint's weights file; written when it is saved


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (or a name in `qamdetr/configs`), follow its `extends:`, apply `a.b=c` overrides."""
    name = str(name_or_path)
    if not Path(name).is_file() and (SYSTEM_DIR / f"{name}.yaml").is_file():
        remedy = f"run it with `python -m qamdetr predict --system {name}`"
        raise ConfigError(f"{name!r} is a system of several checkpoints, not an experiment", remedy)
    values = read_yaml(name, CONFIG_DIR)
    apply_overrides(values, overrides)
    return build(Config, values)


def config_to_dict(config: object) -> dict[str, Any]:
    """Undo `build`: nested mappings and lists of plain YAML types."""
    return dict(TypeAdapter(type(config)).dump_python(config, mode="json"))


def save_config(config: Config, path: Path) -> None:
    """Write `config` as YAML, in full, so that a checkpoint does not depend on later defaults."""
    path.write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False), encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """Refuses doubled keys, of which PyYAML would take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401 - PyYAML's own signature
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for name, line in ((str(key.value), key.start_mark.line + 1) for key, _ in node.value):
            if name in lines:
                raise yaml.YAMLError(f"the key {name!r} stands twice, in lines {lines[name]} and {line}; remove one.")
            lines[name] = line
        return node


def read_yaml(name: str, folder: Path, kind: str = "config", seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML file and all that it extends, the later over the earlier; sections merge, a mapping inside a section is one value.

    `name` is a path, or a file of `folder`, where those that begin with `_` are parts of others; `kind` is what messages call it.
    """
    path = next((found for found in (Path(name), folder / f"{name}.yaml") if found.is_file()), None)
    if path is None:
        known = ", ".join(sorted(found.stem for found in folder.glob("[!_]*.yaml")))
        raise ConfigError(f"No {kind} {name!r}: give a YAML file or one of {known}.")
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `extends` goes round in a circle; remove one of {[file.name for file in seen]}.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold sections such as `model:`, not {type(values).__name__}.")
    extends = values.pop("extends", None) or []
    layers = []
    for parent in extends if isinstance(extends, list) else [extends]:
        beside = path.parent / f"{parent}.yaml"
        layers.append(read_yaml(str(beside if beside.is_file() else parent), folder, kind, (*seen, path.resolve())))
    merged: dict[str, Any] = {}
    for key, entries in (item for layer in (*layers, values) for item in layer.items()):
        both = isinstance(entries, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **entries} if both else entries
    return merged


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Put `a.b=c` overrides, whose values are YAML, into nested mappings."""
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {override!r} is not of the form section.key=value, such as train.epochs=10.")
        *parents, leaf = key.strip().split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override!r}: {parent!r} is a value, not a section; use section.key=value.")
        try:
            target[leaf] = yaml.load(text, _Loader)
        except (yaml.YAMLError, RecursionError):
            raise ConfigError(f"--set {override!r}: the value is not valid YAML; write numbers, words or [lists].") from None


def build(cls: type[T], values: object) -> T:
    """Build a `section` class, and those inside it, from nested mappings; keys that `values` lacks take the defaults."""
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        raise ConfigError(_sentence(cls, error)) from None


def _sentence(cls: Any, error: ValidationError, prefix: str = "") -> str:  # noqa: ANN401 - a class or a type hint
    """Say the first thing that pydantic found in one line; unknown keys come before all else."""
    unknown = ("unexpected_keyword_argument", "invalid_key")
    problem = min(error.errors(), key=lambda problem: problem["type"] not in unknown)
    kind, place, value, details = problem["type"], problem["loc"], problem["input"], problem.get("ctx", {})
    name = ".".join(str(part) for part in (prefix, *place) if part != "")
    if kind in unknown:
        for part in place[:-1]:
            hints = get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
            cls = hints.get(str(part)) or next(filter(dataclasses.is_dataclass, get_args(cls)), cls)
        return f"Unknown key {name!r}; known here: {', '.join(item.name for item in dataclasses.fields(cls))}."
    choices = details.get("expected", "").replace("'", "").replace(" or ", ", ")
    return {
        "missing": f"{name} is missing; it has no default.",
        "too_short": f"{name} is {value}; it must name at least one stream with its width, such as {{pocket: 256}}.",
        "dataclass_type": f"{name or 'config'} must be a section with keys, not {value!r}.",
        "value_error": f"{name} {details.get('error')}",
        "literal_error": f"{name} is {value!r}; it must be one of {choices}.",
    }.get(kind, f"{name} is {value!r}; expected {kind.split('_')[0].replace('string', 'str')}.")
