"""Pretrained models and their tokenisers: where they lie on this machine, how to get them, and how they are read."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shlex
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.types import TextFeatures

_log = logging.getLogger(__name__)

REACH_SECONDS = 8.0  # for the hub to answer at all, so that a machine whose network swallows everything does not hang

TOKENIZER = ("tokenizer.json", "vocab.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Small files that are downloaded too, from hub ids that are not the default, where these have them.
_TAKEN_ALONG = ("preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")

# A list of names, as the whole configuration differs from one version of Transformers to the next.
_DECISIVE = (
    *("hidden_act", "activation_function", "projection_hidden_act", "layer_norm_eps", "layer_norm_epsilon", "position_embedding_type"),
    *("num_attention_heads", "n_head", "pad_token_id", "depths", "window_size", "spec_size", "patch_stride", "enable_fusion"),
    *("feat_extract_norm", "feat_extract_activation", "conv_stride", "do_stable_layer_norm", "num_buckets", "max_bucket_distance"),
    *("num_conv_pos_embedding_groups", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
)


@dataclass(frozen=True)
class Hub:
    """Where a model lies on the hub."""

    repo: str
    revision: str  # a commit, so that features do not change when somebody changes a repository; or a branch
    megabytes: int  # size of the download, about; 0 = not known
    files: tuple[str, ...]  # at this revision; empty = to be asked for
    needed: tuple[tuple[str, ...], ...] = ()  # groups of files, of each of which one must be there; empty = every one of `files`
    beside: Hub | None = None  # another model that the default needs beside it, such as a tokeniser
    patterns: tuple[str, ...] = ()  # what to download of a repository whose files are not known; empty = one file of each group
    called: str = ""  # see `name_for`
    otherwise: str = "name a local folder with `--encoder {stream}=FOLDER`"  # what to do where there is a copy already
    instead: str = "the pocket encoders (combo 'pocket', checkpoint qam-detr-pocket), which need no download"

    def __str__(self) -> str:
        size = f"{self.megabytes} MB" if self.megabytes < 10_000 else f"{self.megabytes // 1000} GB"
        return f"{self.repo} (about {size})" if self.megabytes else self.repo

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Groups of files, of each of which one must be there."""
        return self.needed or tuple((name,) for name in self.files)

    def name_for(self, stream: str) -> str:
        """Say what messages call it."""
        return self.called or f"the encoder {stream}"

    @property
    def command(self) -> str:
        """The shell command that puts the model where `locate` finds it; without known files, all of the repository."""
        return shlex.join(["hf", "download", self.repo, *self.files, "--revision", self.revision])


class MissingModelError(CheckpointError):
    """Models that are not on this machine and could not be downloaded."""

    def __init__(self, missing: Sequence[tuple[str, Hub]], reason: str) -> None:
        self.missing, self.reason = missing, reason
        names = " and ".join(f"{wanted.name_for(stream)} ({wanted})" for stream, wanted in missing)
        commands = " && ".join(wanted.command for _, wanted in missing)
        (stream, first), verb = missing[0], "is" if len(missing) == 1 else "are"
        super().__init__(
            f"{names[0].upper()}{names[1:]} {verb} not on this machine and cannot be downloaded ({reason}): "
            f"run `{commands}` where there is a network, {first.otherwise.format(stream=stream)}, or use {first.instead}."
        )


def locate(stream: str, wanted: Hub, override: str = "", *, download: bool = True) -> Path:
    """Return the folder that holds a stream's model, downloading it where it is missing and the hub can be reached.

    `override` takes the place of the default: a folder or file here, taken as it is, or another hub id, with `@revision` or without.
    `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean everywhere.
    """
    if override:
        local = Path(override).expanduser()
        if local.exists():
            return local
        repo, _, revision = override.partition("@")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or repo.startswith("."):
            what = f"{wanted.name_for(stream)} is to come from {override}, which does not exist"
            raise CheckpointError(what[0].upper() + what[1:], f"{wanted.otherwise.format(stream=stream)}, or a hub id")
        wanted = replace(wanted, repo=repo, revision=revision or "main", megabytes=0, files=(), needed=wanted.groups)
    folder = _cached(wanted)
    if folder is None and not download:
        raise MissingModelError([(stream, wanted)], "no download was asked for")
    return folder or _download(stream, wanted)


def _cached(wanted: Hub) -> Path | None:
    """Folder of the snapshot in the hub's cache; None unless it holds everything needed (a download may have broken off)."""
    from huggingface_hub import try_to_load_from_cache

    found = [[try_to_load_from_cache(wanted.repo, name, revision=wanted.revision) for name in group] for group in wanted.groups]
    paths = [next((path for path in group if isinstance(path, str)), None) for group in found]
    if not paths[0] or not all(paths):
        return None
    folder = Path(paths[0]).parent
    index = folder / "model.safetensors.index.json"
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else ()
    return folder if all((folder / shard).is_file() for shard in shards) else None


def _download(stream: str, wanted: Hub) -> Path:
    """Fetch what is needed; of a repository whose files are not known, the first of each group and the small ones beside them."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise MissingModelError([(stream, wanted)], "HF_HUB_OFFLINE is set")
    try:
        # Asked first because snapshot_download itself knows no limit of time.
        info = HfApi().model_info(wanted.repo, revision=wanted.revision, timeout=REACH_SECONDS)
        files = [*(wanted.files or wanted.patterns)]
        if not files:
            there = {sibling.rfilename for sibling in info.siblings or ()}
            for group in wanted.groups:
                if not there.intersection(group):
                    what = f"{wanted.repo} at revision {wanted.revision} has no {' or '.join(group)}"
                    raise CheckpointError(what, f"name a model of the kind of the encoder {stream}")
                files.append(next(name for name in group if name in there))
            files += _TAKEN_ALONG
        _log.warning("Downloading %s for %s to %s; this happens once.", wanted, wanted.name_for(stream), constants.HF_HUB_CACHE)
        snapshot_download(wanted.repo, revision=wanted.revision, allow_patterns=files, etag_timeout=REACH_SECONDS)
    except QamDetrError:
        raise
    except Exception as error:  # the hub's client and the HTTP library beneath it raise classes of their own
        raise MissingModelError([(stream, wanted)], one_line(error)) from error
    folder = _cached(wanted)
    if folder is None:
        raise MissingModelError([(stream, wanted)], "the download is not complete")
    return folder


@contextlib.contextmanager
def reading(stream: str, source: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a model is read from `source` into one line, a `CheckpointError`."""
    try:
        yield
    except QamDetrError:
        raise
    except Exception as error:  # torch, transformers, tokenizers and safetensors raise classes of their own
        what = f"{source} cannot be read as the encoder {stream} ({one_line(error)})"
        raise CheckpointError(what, "it is damaged or another kind of model: download it again, or name another") from error


def one_line(error: Exception) -> str:
    """Shorten a foreign error's text to a part of a message."""
    return textwrap.shorten(str(error), 160, placeholder=" …") or type(error).__name__


def load_network(stream: str, network_class: Any, source: Path, *, unused: Collection[str] = (), **arguments: object) -> Any:  # noqa: ANN401
    """Load a Transformers network from a folder, in float32 and `eval()`; weights that the folder lacks are never made up.

    `unused` are weights that may be missing because inference does not use them; `arguments` go to the class.
    """
    from transformers.utils import logging as messages

    with reading(stream, source):
        messages.set_verbosity_error()  # type: ignore[no-untyped-call]  # no table of weights that only training needs
        messages.disable_progress_bar()  # type: ignore[no-untyped-call]
        network, report = network_class.from_pretrained(
            source, local_files_only=True, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
        )
    # Those of other sizes are names, in some versions with the two shapes behind.
    unfit = {item if isinstance(item, str) else str(item[0]) for item in report["mismatched_keys"]}
    if lacking := sorted(unfit | (set(report["missing_keys"]) - set(unused))):
        what = f"{source} lacks {len(lacking)} weights of the encoder {stream} in the sizes of its config.json, such as {lacking[0]}"
        raise CheckpointError(what, "it holds another kind of model, or a part of one: download it again, or name another")
    return network.eval().requires_grad_(False)


def network_settings(config: Any) -> tuple[tuple[str, str], ...]:  # noqa: ANN401 - Transformers has no types
    """Pick of a Transformers configuration what decides a network's outputs beside its weights, for `weights_fingerprint`."""
    found = [(name, value) for name in sorted(_DECISIVE) if (value := getattr(config, name, None)) is not None]
    return tuple((name, str(list(value) if isinstance(value, (list, tuple)) else value)) for name, value in found)


Offsets = tuple[tuple[int, int], ...]  # per token, see `TextFeatures`
_PROBE = "Zwölf Boxkämpfer jagen a quick dog, 42 times, it barks: 🐶!!"


class HubTokenizer:
    """A tokeniser from a folder in the hub's layout, with `tokenizer.json` or what Transformers makes a fast one of."""

    def __init__(self, folder: Path, stream: str, *, max_tokens: int, vocab_size: int, suffix: str = "", apart: Sequence[str] = ()) -> None:
        """Read the tokeniser of a stream whose word table has `vocab_size` rows; tokens that stand `apart` are never joined to others.

        `suffix` is text that the encoder expects behind every query, and counts to `max_tokens` as special tokens do.
        """
        self._stream, self._suffix, self._max_tokens = stream, suffix, max_tokens
        with reading(stream, folder):
            if (folder / "tokenizer.json").is_file():
                from tokenizers import Tokenizer

                self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            else:
                from transformers import AutoTokenizer

                self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
            # Files may carry the settings of somebody's last call.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._tokenizer.add_special_tokens(list(apart))
        if (known := self._tokenizer.get_vocab_size()) > vocab_size:
            what = f"{folder}: the tokeniser knows {known} tokens, the encoder {stream} {vocab_size}"
            raise CheckpointError(what, "they do not belong together")

    def encode(self, query: str) -> tuple[list[int], Offsets]:
        """Return token ids and offsets. A token's range covers its letters alone, not the blank that byte-level vocabularies put before.

        Where a letter is cut into several tokens (emoji), each of them has the range of the whole letter.
        """
        encoding = self._tokenizer.encode(query + self._suffix)
        if len(encoding.ids) > self._max_tokens:
            what = f"The query has {len(encoding.ids)} tokens; the {self._stream} text encoder reads at most {self._max_tokens}."
            raise QamDetrError(f"{what} Use a shorter sentence.")
        return encoding.ids, tuple(_letters(query, begin, end) for begin, end in encoding.offsets)

    def states(self, network: Any, query: str) -> tuple[TextFeatures, Any]:  # noqa: ANN401 - Transformers has no types
        """Run a network on one query; returns the states of its tokens, float32 on the CPU, and all that the network gave."""
        ids, offsets = self.encode(query)
        output = network(input_ids=torch.tensor([ids], device=network.device))
        return TextFeatures(output.last_hidden_state[0].float().cpu().clone(), offsets), output

    @property
    def probe(self) -> tuple[list[int], Offsets]:
        """What the tokeniser makes of a fixed sentence: differs between vocabularies, whatever files they come from."""
        encoding = self._tokenizer.encode(_PROBE + self._suffix)
        return encoding.ids, tuple(encoding.offsets)


def _letters(query: str, begin: int, end: int) -> tuple[int, int]:
    """Cut a range to the query (what lies behind belongs to the suffix) and take blanks off both ends."""
    text = query[begin:end]
    trimmed = text.strip()
    begin += len(text) - len(text.lstrip())
    return (begin, begin + len(trimmed)) if trimmed else (0, 0)
