"""What a visitor may choose, with what each choice needs in plain words: models, encoders, verifiers. Asks no network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from qamdetr.errors import QamDetrError
from qamdetr.features import base
from qamdetr.features.base import COMBOS, STREAMS
from qamdetr.ui.ablations import read_config
from qamdetr.ui.settings import AppSettings

_HERE = "here"


def model_choices(offered: Mapping[str, str]) -> list[tuple[str, str]]:
    """Label each model with the encoders that it brings: `(label, name)`.

    Args:
        offered: Name -> folder, see `SharedRetriever.models`.
    """
    return [(f"{name} · {_model_needs(folder)}", name) for name, folder in offered.items()]


def encoder_choices(offered: Mapping[str, str]) -> list[tuple[str, str]]:
    """Label each combo of encoders with what it needs to be used: `(label, combo)`.

    Args:
        offered: See `model_choices`.
    """
    labels = []
    for combo in COMBOS:
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
    return [(labels.get(name, name), name) for name in settings.verifiers]


def models_with(combo: str, offered: Mapping[str, str]) -> list[str]:
    """Names of the offered models that were trained on a combo of encoders.

    Args:
        combo: Its name.
        offered: See `model_choices`.
    """
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
    fetch = "" if needs == _HERE else f" Opening it then {needs}, once."
    return f"No model here was trained on {combo_label(combo)}: train one, or put its checkpoint folder beside the others.{fetch}"


def combo_label(combo: str) -> str:
    """Call a combo by its encoders."""
    names = [STREAMS[stream].label for stream in combo_streams(combo)]
    return "Pocket, made by this project" if combo == "pocket" else (f"{combo}: " if len(combo) == 1 else "") + " + ".join(names)


def combo_streams(combo: str) -> list[str]:
    """Streams of a combo, audio first, each once."""
    return list(dict.fromkeys([*COMBOS[combo].audio_streams, *COMBOS[combo].text_streams]))


def needs_of(streams: Collection[str], models: Mapping[str, str] | None = None) -> str:
    """Say what streams need: `here`, or the size of the download.

    Args:
        streams: Names of streams.
        models: Stream -> hub id or folder in the place of the default.
    """
    missing = _missing(streams, models or {})
    if not missing:
        return _HERE
    if any((models or {}).get(name) for name in missing):
        return "needs a download"
    megabytes = sum(wanted.megabytes for name in missing for wanted in base.hub_models(name))
    return f"needs a download of {megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"needs a download of {megabytes} MB"


def _model_needs(checkpoint: str) -> str:
    try:
        config = read_config(checkpoint)
    except QamDetrError:
        return "cannot be read"
    combo = config.data.combo
    streams = {*config.model.audio_streams, *config.model.text_streams, *(combo_streams(combo) if combo in COMBOS else ())}
    kind = "pocket encoders" if combo == "pocket" else f"encoders {combo}"
    return f"{kind}, {needs_of(streams, config.data.encoder_models)}"


def _missing(streams: Collection[str], models: Mapping[str, str]) -> list[str]:
    """Pretrained models of streams that are not on this machine."""
    return [stream for stream in sorted(streams) if not _is_here(stream, models.get(stream, ""))]


def _is_here(stream: str, override: str) -> bool:
    return stream not in STREAMS or base.is_here(stream, override)


def _qwen_needs(model: str) -> str:
    from qamdetr.verifiers.qwen_omni import DOWNLOAD_GIGABYTES, is_here

    if is_here(model):
        return "here; wants a large GPU"
    size = f" of {DOWNLOAD_GIGABYTES[model]} GB" if model in DOWNLOAD_GIGABYTES else ""
    return f"needs a download{size} and a large GPU"


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2] or "a server"  # a name and password in the address are nobody's business
