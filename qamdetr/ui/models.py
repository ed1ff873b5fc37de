"""The models that all visitors share: each loaded once, on first use or at start-up, and only read afterwards."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import numpy as np

import qamdetr.config
from qamdetr.config import VerifierConfig
from qamdetr.errors import ConfigError, QamDetrError
from qamdetr.features import base
from qamdetr.features.base import COMBOS, OPEN, STREAMS, Streams, get_combo, joint_of
from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT, OPEN_CHECKPOINT, WEIGHTS_FILE, available_checkpoints
from qamdetr.ui.ablations import read_config
from qamdetr.ui.settings import NEED_SETTINGS, AppSettings
from qamdetr.ui.train.runs import BEST, checkpoint_in, identity, run_folders
from qamdetr.verifiers import VERIFIERS
from qamdetr.verifiers.base import Verifier

if TYPE_CHECKING:
    from qamdetr.inference.retriever import MomentRetriever

KEPT_MODELS = 8
"""Checkpoints that stay loaded: the rows of Table 1 and two more, a few MB each; the one used longest ago goes first."""

OF_RUN = "run: "
"""Begins the name of a model that was trained here."""

MAX_RUNS = 40
"""Runs that are offered, the newest: a longer list is of no use, and each label is read from a file. "Use in Find" offers any other."""

MAX_TOLD = 12
"""Names that a message lists."""

_log = logging.getLogger(__name__)


def load_retriever(checkpoint: str) -> MomentRetriever:
    """Load a checkpoint; imports the model code only now, so that the page itself comes up fast."""
    from qamdetr.ui.gpu import open_retriever

    return open_retriever(checkpoint)


def encoder_key(retriever: MomentRetriever) -> str:
    """Tell the encoders of a model from others."""
    encoder = cast("Streams", retriever.encoder)  # the page's models never read stored features
    return encoder.fingerprint if encoder.joint is None else f"{encoder.joint.fingerprint}-{encoder.fingerprint}"


def open_models() -> list[str]:
    """Name the open model with each of the encoders that it can hear with."""
    return [f"{OPEN_CHECKPOINT}:{stream}" for stream in STREAMS if STREAMS[stream].is_joint]


def run_model(run: str) -> str:
    """Name the model of a run."""
    return f"{OF_RUN}{run}"


class OfferedModels:
    """The models by name."""

    def __init__(self, first: str, runs: Path | None = None) -> None:
        """Look at no run yet.

        Args:
            first: Name or folder of the checkpoint that the page starts with.
            runs: Folder of the runs whose checkpoints are offered; None offers none.
        """
        self.runs = runs
        self._handed_over: dict[str, Path] = {}
        self._first_source = first
        self.first = _name_of(first, runs)

    def shipped(self) -> dict[str, str]:
        """Map the names of the page's first model, the pocket default and the others that lie here to what `find_checkpoint` takes."""
        found = [each for name in available_checkpoints() for each in (open_models() if name == OPEN_CHECKPOINT else [name])]
        names = dict.fromkeys([DEFAULT_CHECKPOINT, *found])
        return {self.first: self._first_source, **{name: name for name in names if name != self.first}}

    def models(self) -> dict[str, str]:
        """Map the names of all models to what `find_checkpoint` takes: first the `shipped`, then those of runs, the newest first."""
        handed_over = {name: str(folder) for name, folder in list(self._handed_over.items()) if checkpoint_in(folder.parent) is not None}
        trained = {**self._newest_runs(), **handed_over}
        return {**self.shipped(), **{name: folder for name, folder in trained.items() if name != self.first}}

    def offer(self, name: str, folder: Path) -> None:
        """Offer the model of a run that the list may be too short for."""
        self._handed_over[name] = folder

    def offered(self) -> list[str]:
        """List the names of `models`."""
        return list(self.models())

    def folder(self, name: str) -> str:
        """Return what `find_checkpoint` takes for a name; one that is not offered comes back as it is."""
        if name == self.first:
            return self._first_source
        return self.models().get(name, name) if name.startswith(OF_RUN) else name

    def refusal(self, name: str) -> ConfigError:
        """Say that a model is not offered, and what to do."""
        known = list(self.models())
        more = f" or {len(known) - MAX_TOLD} more that the page lists" if len(known) > MAX_TOLD else ""
        choose = f"choose one of {', '.join(known[:MAX_TOLD])}{more}."
        if self.runs is not None and name.startswith(OF_RUN):
            return ConfigError(f"The model of the run {name.removeprefix(OF_RUN)!r} is no longer here: it was moved or removed; {choose}")
        return ConfigError(f"Model {name!r} is not offered here; {choose}")

    def _newest_runs(self) -> dict[str, str]:
        if self.runs is None:
            return {}
        found = []
        for run in run_folders(self.runs):
            best = checkpoint_in(run)
            if best is not None:
                found.append((_changed_ns(best), run_model(identity(run, self.runs)), str(best.resolve())))
        return {name: best for _, name, best in sorted(found, reverse=True)[:MAX_RUNS]}


def _name_of(checkpoint: str, runs: Path | None) -> str:
    """Call the page's first model by a name that tells no folder of the server."""
    path = Path(checkpoint)
    if not path.is_dir() and path.name == checkpoint:
        return checkpoint  # a name already
    folder = path.resolve()
    if folder.parent == qamdetr.config.CHECKPOINT_DIR.resolve():
        return folder.name
    is_best = folder.name == BEST
    if is_best and runs is not None and folder.is_relative_to(runs.resolve()):
        return run_model(identity(folder.parent, runs))
    name = folder.parent.name if is_best else folder.name
    return f"folder: {name}" if name in (DEFAULT_CHECKPOINT, *available_checkpoints()) else name


def _changed_ns(checkpoint: Path) -> int:
    try:
        return (checkpoint / WEIGHTS_FILE).stat().st_mtime_ns
    except OSError:  # removed in this moment
        return 0


class SharedRetriever(OfferedModels):
    """Loads each checkpoint once, however many visitors ask at the same time."""

    def __init__(
        self, load: Callable[[str], MomentRetriever] = load_retriever, settings: AppSettings | None = None, runs: Path | None = None
    ) -> None:
        """Load nothing yet.

        Args:
            load: Makes a retriever from the name or folder of a checkpoint.
            settings: Names the checkpoint that the page starts with, and where large verifiers are; None for the defaults.
            runs: Folder of the runs whose checkpoints are offered; None offers none.
        """
        self._load = load
        self._settings = settings or AppSettings()
        super().__init__(self._settings.checkpoint, runs)
        self._lock = threading.Lock()
        self._retrievers: OrderedDict[str, tuple[int, MomentRetriever]] = OrderedDict()
        self._verifiers: dict[tuple[str, VerifierConfig], Verifier | None] = {}

    def get(self, checkpoint: str | None = None) -> MomentRetriever:
        """Return the retriever of a checkpoint, loading it if nobody has yet, or if its training went on meanwhile.

        Raises:
            QamDetrError: The checkpoint or one of its encoders is missing or broken; the next call tries again.
        """
        name = checkpoint or self.first
        folder = self.folder(name)
        with self._lock:
            written_ns = _written_ns(folder)
            if name not in self._retrievers or self._retrievers[name][0] != written_ns:
                self._retrievers[name] = (written_ns, self._open(name, folder))
            self._retrievers.move_to_end(name)
            while len(self._retrievers) > KEPT_MODELS:
                self._retrievers.popitem(last=False)
            return self._retrievers[name][1]

    def open_offered(self, checkpoint: str, remedy: str) -> None:
        """Load a model that a visitor or a program names.

        Args:
            checkpoint: Its name.
            remedy: What else to do where its encoders are not here.

        Raises:
            QamDetrError: Not offered, or it or its encoders are not here.
        """
        if checkpoint not in self.models():
            raise self.refusal(checkpoint)
        try:
            self.get(checkpoint)
        except QamDetrError as error:
            if checkpoint == DEFAULT_CHECKPOINT:
                raise
            raise type(error)(error.what, f"{error.remedy}, or {remedy}" if error.remedy else remedy, error.subject) from error

    def verifier(self, name: str, retriever: MomentRetriever) -> str | Verifier:
        """Return what a retriever takes as verifier: the name, or a verifier made with the model or address that the settings name.

        Raises:
            QamDetrError: Settings that the verifier cannot use.
        """
        if name not in NEED_SETTINGS:
            return name
        from qamdetr.ui.gpu import open_verifier

        trained = retriever.config.verifier
        with self._lock:
            if (name, trained) not in self._verifiers:
                self._verifiers[name, trained] = open_verifier(name, self._settings, trained)
            return self._verifiers[name, trained] or name

    def _open(self, name: str, folder: str) -> MomentRetriever:
        try:
            return self._load(folder)
        except QamDetrError as error:
            # Visitors know the model by its name; the folder is the server's business.
            raise error.about(name) from error

    def warm_up(self) -> None:
        """Load the model and answer one query on noise, so that the first visitor does not pay for compilation."""
        noise = 0.1 * np.random.default_rng(0).standard_normal(3 * 16000).astype(np.float32)
        retriever = self.get()
        retriever.retrieve_many(retriever.encode((noise, 16000)), ["a sound"])

    def warm_up_in_background(self) -> threading.Thread:
        """Start `warm_up` in a thread; a failure is logged and met again, with its message, by the first visitor."""

        def run() -> None:
            try:
                self.warm_up()
            except QamDetrError as error:
                _log.error("The model could not be warmed up: %s", error)
            except Exception:  # a server must come up and say what is wrong, whatever it is
                _log.exception("The model could not be warmed up.")

        thread = threading.Thread(target=run, name="qamdetr-warm-up", daemon=True)
        thread.start()
        return thread


def _written_ns(folder: str) -> int:
    """When the weights of a checkpoint were written; 0 for one that is given by its name, and does not change."""
    try:
        return (Path(folder) / WEIGHTS_FILE).stat().st_mtime_ns
    except OSError:
        return 0


HERE = "here"


def model_choices(offered: Mapping[str, str]) -> list[tuple[str, str]]:
    """Label each model with the encoders that it brings: `(label, name)`."""
    return [(f"{name} · {_model_needs(folder)}", name) for name, folder in offered.items()]


def encoder_choices(offered: Mapping[str, str]) -> list[tuple[str, str]]:
    """Label each combo of encoders with what it needs to be used: `(label, combo)`."""
    labels = []
    for combo in (*COMBOS, *(f"{OPEN}:{stream}" for stream in STREAMS if STREAMS[stream].is_joint)):
        needs = needs_of(combo_streams(combo))
        if not models_with(combo, offered):
            needs += "; no model here reads them yet"
        labels.append((f"{combo_label(combo)} · {needs}", combo))
    return labels


def verifier_choices(settings: AppSettings) -> list[tuple[str, str]]:
    """Label each offered verifier with what it does and needs: `(label, name)`."""
    labels = {
        "none": "None: the decoder's own scores",
        "pocket": "Pocket: each candidate is heard once more, by the pocket encoders that are here",
        "qwen2.5-omni": f"Qwen2.5-Omni: a large language model hears each candidate; {_qwen_needs(settings.verifier_model)}",
        "server": f"Server: the sound of each candidate goes to {_host(settings.verifier_url)}",
    }
    return [(labels[name] if name in labels else VERIFIERS[name].label, name) for name in settings.verifiers]


def models_with(combo: str, offered: Mapping[str, str]) -> list[str]:
    """Names of the offered models that were trained on a combo of encoders."""
    return [name for name, folder in offered.items() if combo_of(folder) == combo]


def combo_of(checkpoint: str) -> str | None:
    """Combo of encoders of a model, by name or folder; None where its checkpoint cannot be read."""
    try:
        return read_config(checkpoint).data.combo
    except QamDetrError:
        return None


def own_beta(checkpoint: str, verifier: str) -> float | None:
    """Weight that a checkpoint, by name or folder, was calibrated to for a verifier; None where it cannot be read."""
    try:
        settings = read_config(checkpoint).inference
    except QamDetrError:
        return None
    return settings.beta_by_verifier.get(verifier, settings.beta)


def how_to_get_encoder(combo: str) -> str:
    """Say what to do where no model of a combo is here."""
    needs = needs_of(combo_streams(combo))
    fetch = "" if needs == HERE else f" Opening it then {needs}, once."
    return f"No model here was trained on {combo_label(combo)}: train one, or put its checkpoint folder beside the others.{fetch}"


def combo_label(combo: str) -> str:
    """Call a combo by its encoders."""
    names = [STREAMS[stream].label for stream in combo_streams(combo)]
    if joint := joint_of(combo):
        return f"{STREAMS[joint].label}, open vocabulary"
    return "Pocket, made by this project" if combo == "pocket" else (f"{combo}: " if len(combo) == 1 else "") + " + ".join(names)


def combo_streams(combo: str) -> list[str]:
    """Streams of a combo, audio first, each once."""
    audio, text = get_combo(combo)
    return list(dict.fromkeys([*audio, *text]))


def needs_of(streams: Collection[str], models: Mapping[str, str] | None = None) -> str:
    """Say what streams need: `here`, or the size of the download."""
    missing = [name for name in sorted(streams) if name in STREAMS and not base.is_here(name, (models or {}).get(name, ""))]
    if not missing:
        return HERE
    if any((models or {}).get(name) for name in missing):
        return "needs a download"
    megabytes = sum(wanted.megabytes for name in missing for wanted in base.hub_models(name))
    return f"needs a download of {megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"needs a download of {megabytes} MB"


def _model_needs(checkpoint: str) -> str:
    try:
        config = read_config(checkpoint)
    except QamDetrError:
        return "cannot be read"
    combo, joint = config.data.combo, joint_of(config.data.combo)
    streams = {*config.model.audio_streams, *config.model.text_streams, *(combo_streams(combo) if combo in COMBOS or joint else ())}
    kind = "pocket encoders" if combo == "pocket" else STREAMS[joint].label if joint else f"encoders {combo}"
    return f"{kind}, {needs_of(streams, config.data.encoder_models)}"


def _qwen_needs(model: str) -> str:
    from qamdetr.verifiers.qwen_omni import DOWNLOAD_GIGABYTES, locate_model

    with contextlib.suppress(QamDetrError):
        locate_model(model, download=False)
        return "here; wants a large GPU"
    size = f" of {DOWNLOAD_GIGABYTES[model]} GB" if model in DOWNLOAD_GIGABYTES else ""
    return f"needs a download{size} and a large GPU"


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2] or "a server"  # a name and password in the address are nobody's business
