"""The pretrained models of the big encoders: which they are, where they lie on this machine, and how to get them."""

from __future__ import annotations

import contextlib
import logging
import shlex
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qamdetr.errors import CheckpointError, QamDetrError

_log = logging.getLogger(__name__)

_REACH_SECONDS = 8.0
"""How long the hub may take to answer at all, so that a machine whose network swallows everything does not hang."""

_TOKENIZER = ("tokenizer.json", "vocab.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_DECISIVE = (
    *("hidden_act", "activation_function", "projection_hidden_act", "layer_norm_eps", "layer_norm_epsilon", "position_embedding_type"),
    *("num_attention_heads", "n_head", "pad_token_id", "depths", "window_size", "spec_size", "patch_stride", "enable_fusion"),
    *("feat_extract_norm", "feat_extract_activation", "conv_stride", "do_stable_layer_norm", "num_buckets", "max_bucket_distance"),
    *("num_conv_pos_embedding_groups", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
)
_TAKEN_ALONG = ("preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
"""Small files that are downloaded too, from hub ids that are not in the table, where these have them."""


@dataclass(frozen=True)
class HubModel:
    """Where a model lies on the hub.

    Attributes:
        repo: Hub id.
        revision: Commit, or branch.
        megabytes: Size of the download, about; 0 = not known.
        files: Its files at this revision; empty = to be asked for.
        needed: Groups of files, of each of which one must be there.
        otherwise: What to do where there is a copy already.
    """

    repo: str
    revision: str
    megabytes: int
    files: tuple[str, ...]
    needed: tuple[tuple[str, ...], ...]
    otherwise: str = "name a local folder with `--encoder {model}=FOLDER`"

    def __str__(self) -> str:
        return f"{self.repo} (about {self.megabytes} MB)" if self.megabytes else self.repo

    @property
    def command(self) -> str:
        """The shell command that puts the model where `locate` finds it; without known files, all of the repository."""
        return shlex.join(["hf", "download", self.repo, *self.files, "--revision", self.revision])


def _wavlm(repo: str, revision: str, megabytes: int) -> HubModel:
    settings = ("config.json", "preprocessor_config.json")
    return HubModel(repo, revision, megabytes, (*settings, "pytorch_model.bin"), (*((name,) for name in settings), _WEIGHTS))


HUB_MODELS: dict[str, HubModel] = {
    "laion_clap": HubModel(
        "laion/clap-htsat-unfused",
        "8fa0f1c6d0433df6e97c127f64b2a1d6c0dcda8a",
        618,
        ("config.json", "preprocessor_config.json", "tokenizer.json", "pytorch_model.bin"),
        (("config.json",), ("preprocessor_config.json", "processor_config.json"), _TOKENIZER, _WEIGHTS),
    ),
    "ms_clap": HubModel(
        "microsoft/msclap",
        "c47d441165daa21986ead0850660917636a81775",
        690,
        ("CLAP_weights_2023.pth",),
        (("CLAP_weights_2023.pth",),),
    ),
    "gpt2": HubModel(
        "openai-community/gpt2",
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        1,
        ("tokenizer.json",),
        (_TOKENIZER,),
        "put a tokenizer.json of GPT-2 beside the weights of ms_clap",
    ),
    "wavlm_base": _wavlm("microsoft/wavlm-base", "efa81aae7ff777e464159e0f877d54eac5b84f81", 378),
    "wavlm_base_plus": _wavlm("microsoft/wavlm-base-plus", "4c66d4806a428f2e922ccfa1a962776e232d487b", 378),
    "wavlm_large": _wavlm("microsoft/wavlm-large", "c1423ed94bb01d80a3f5ce5bc39f6026a0f4828c", 1262),
    "roberta": HubModel(
        "FacebookAI/roberta-base",
        "e2da8e2f811d1448a5b465c236feacd80ffbac7b",
        501,
        ("config.json", "tokenizer.json", "model.safetensors"),
        (("config.json",), _TOKENIZER, _WEIGHTS),
    ),
}
HUB_MODELS["roberta_tokenizer"] = replace(
    HUB_MODELS["roberta"],
    megabytes=1,
    files=("tokenizer.json",),
    needed=(_TOKENIZER,),
    otherwise="put a tokenizer.json of RoBERTa beside the checkpoint of laion_clap",
)
"""Stream -> its model on the hub. The one place that names ids and revisions.

Beside the streams: `gpt2`, the tokeniser of `ms_clap`, and `roberta_tokenizer`, that of the package `laion-clap`'s own checkpoints.
"""


class MissingModelError(CheckpointError):
    """A model that is not on this machine and could not be downloaded; several can be told as one, see `together`."""

    def __init__(self, model: str, wanted: HubModel, reason: str) -> None:
        self.model, self.wanted, self.reason = model, wanted, reason
        super().__init__(_how_to_get([self]))

    @staticmethod
    def together(missing: Sequence[MissingModelError]) -> CheckpointError:
        """Return one error that names all of them, with the commands that get them."""
        return missing[0] if len(missing) == 1 else CheckpointError(_how_to_get(missing))


def locate(model: str, override: str = "", *, download: bool = True) -> Path:
    """Return the folder that holds a model, downloading it where it is missing and the hub can be reached.

    `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean everywhere.

    Args:
        model: A key of `HUB_MODELS`.
        override: What to use in the place of the default: a folder or file on this machine, taken as it is, or another hub id, with
            `@revision` or without.
        download: Whether a missing model may be fetched from the hub.

    Returns:
        A folder in the hub's layout (or the file that `override` names).

    Raises:
        CheckpointError: The model is not here and cannot be downloaded; one line says how to get it.
    """
    wanted = HUB_MODELS[model]
    if override:
        local = Path(override).expanduser()
        if local.exists():
            return local
        repo, _, revision = override.partition("@")
        if not _is_hub_id(repo):
            raise CheckpointError(f"The encoder {model} is to come from {override}, which does not exist.")
        otherwise = f"name a local folder that exists (there is none called {override}) with `--encoder {{model}}=FOLDER`"
        wanted = replace(wanted, repo=repo, revision=revision or "main", files=(), megabytes=0, otherwise=otherwise)
    folder = _cached(wanted)
    if folder is None and not download:
        raise MissingModelError(model, wanted, "no download was asked for")
    return folder or _download(model, wanted)


@contextlib.contextmanager
def reading(model: str, source: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a model is read from `source` into one line.

    Raises:
        CheckpointError: Files missing or damaged, or weights that do not fit the configuration.
    """
    try:
        yield
    except QamDetrError:
        raise
    except Exception as error:  # torch, transformers, tokenizers and safetensors raise classes of their own
        raise CheckpointError(
            f"{source} cannot be read as the encoder {model} ({_one_line(error)}); it is damaged or another kind of model: download it "
            "again, or name another."
        ) from error


def load_network(model: str, network_class: Any, source: Path, *, unused: Collection[str] = (), **arguments: object) -> Any:  # noqa: ANN401
    """Load a Transformers network from a folder, in float32 and `eval()`; weights that the folder lacks are never made up.

    Args:
        model: Name of the encoder, for messages.
        network_class: A class of Transformers.
        source: Folder in the hub's layout.
        unused: Weights that may be missing because inference does not use them.
        arguments: More arguments of the class.

    Raises:
        CheckpointError: Files missing or damaged, or weights missing.
    """
    with reading(model, source), _silent_transformers():
        network, report = network_class.from_pretrained(
            source, local_files_only=True, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
        )
    # Each is a name, in some versions with the two shapes behind it.
    unfit = sorted(item if isinstance(item, str) else str(item[0]) for item in report["mismatched_keys"])
    if unfit:
        raise CheckpointError(
            f"{source}: {len(unfit)} weights of the encoder {model}, such as {unfit[0]}, have other sizes than its config.json says; "
            "the files do not belong together: download it again, or name another."
        )
    lacking = sorted(set(report["missing_keys"]) - set(unused))
    if lacking:
        raise CheckpointError(
            f"{source} lacks {len(lacking)} weights of the encoder {model}, such as {lacking[0]}; it holds another kind of model, or "
            "a part of one: download it again, or name another."
        )
    return network.eval().requires_grad_(False)


@contextlib.contextmanager
def _silent_transformers() -> Iterator[None]:
    """Hold back Transformers' bar and its table of weights that only training needs."""
    from transformers.utils import logging

    messages: Any = logging  # has no types
    level, bar = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    try:
        yield
    finally:
        messages.set_verbosity(level)
        if bar:
            messages.enable_progress_bar()


def _is_hub_id(text: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


def _cached(wanted: HubModel) -> Path | None:
    """Folder of the snapshot in the hub's cache; None unless it holds everything needed (a download may have broken off)."""
    from huggingface_hub import try_to_load_from_cache

    folder = None
    for group in wanted.needed:
        found = (try_to_load_from_cache(wanted.repo, name, revision=wanted.revision) for name in group)
        path = next((Path(path) for path in found if isinstance(path, str)), None)
        if path is None:
            return None
        folder = path.parent
    return folder


def _download(model: str, wanted: HubModel) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise MissingModelError(model, wanted, "HF_HUB_OFFLINE is set")
    try:
        # Asked first because snapshot_download itself knows no limit of time.
        info = HfApi().model_info(wanted.repo, revision=wanted.revision, timeout=_REACH_SECONDS)
        files = wanted.files or _choose_files(model, wanted, {sibling.rfilename for sibling in info.siblings or ()})
        _log.warning("Downloading %s for the encoder %s to %s; this happens once.", wanted, model, constants.HF_HUB_CACHE)
        snapshot_download(wanted.repo, revision=wanted.revision, allow_patterns=list(files), etag_timeout=_REACH_SECONDS)
    except QamDetrError:
        raise
    except Exception as error:  # the hub's client and the HTTP library beneath it raise classes of their own
        raise MissingModelError(model, wanted, _one_line(error)) from error
    folder = _cached(wanted)
    if folder is None:
        raise MissingModelError(model, wanted, "the download is not complete")
    return folder


def _choose_files(model: str, wanted: HubModel, there: Collection[str]) -> tuple[str, ...]:
    """Pick, of the files of another hub id, the first of each needed group and the small ones beside them.

    Raises:
        CheckpointError: It lacks a group.
    """
    chosen = [next((name for name in group if name in there), "") for group in wanted.needed]
    if not all(chosen):
        lacking = wanted.needed[chosen.index("")]
        raise CheckpointError(
            f"{wanted.repo} at revision {wanted.revision} has no {' or '.join(lacking)}; name a model of the same kind as "
            f"{HUB_MODELS[model].repo} for the encoder {model}."
        )
    return (*dict.fromkeys([*chosen, *(name for name in _TAKEN_ALONG if name in there)]),)


def _how_to_get(missing: Sequence[MissingModelError]) -> str:
    names = " and ".join(f"{_called(item.model)} ({item.wanted})" for item in missing)
    commands = " && ".join(item.wanted.command for item in missing)
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"{names[0].upper()}{names[1:]} {verb} not on this machine and cannot be downloaded ({missing[0].reason}): run `{commands}` where "
        f"there is a network, {missing[0].wanted.otherwise.format(model=missing[0].model)}, or use the pocket encoders (combo 'pocket', "
        "checkpoint qam-detr-pocket), which need no download."
    )


def _called(model: str) -> str:
    """Name a model in a message: a stream's encoder, or a tokeniser that a stream needs beside it."""
    return {"gpt2": "the tokeniser of ms_clap", "roberta_tokenizer": "the tokeniser of laion_clap"}.get(model, f"the encoder {model}")


def network_settings(config: Any) -> tuple[tuple[str, str], ...]:  # noqa: ANN401 - Transformers has no types
    """Pick of a Transformers configuration what decides a network's outputs beside its weights, for `weights_fingerprint`.

    A list of names, as the whole configuration differs from one version of Transformers to the next.
    """
    found = {name: getattr(config, name) for name in _DECISIVE if getattr(config, name, None) is not None}
    return tuple((name, str(list(value) if isinstance(value, (list, tuple)) else value)) for name, value in sorted(found.items()))


def _one_line(error: Exception) -> str:
    return textwrap.shorten(str(error), 160, placeholder=" …") or type(error).__name__
