"""Which models the page offers, under which names, with what words, and how each is loaded once."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from doubles import FakeRetriever, row, write_run

from qamdetr.config import Config, DataConfig, InferenceConfig
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.features import base
from qamdetr.features.base import STREAMS, AudioStream, stream
from qamdetr.ui import models
from qamdetr.ui.models import KEPT_MODELS, MAX_RUNS, OfferedModels, SharedRetriever
from qamdetr.ui.settings import AppSettings
from qamdetr.verifiers import VERIFIERS, Verifier, verifier

SHIPPED = ["qam-detr-pocket", "ladder-1-baseline"]


@pytest.fixture(autouse=True)
def _shipped(monkeypatch):
    monkeypatch.setattr(models, "available_checkpoints", lambda: SHIPPED)


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def trained(runs, name, written_ns=10**9, **more):
    folder = write_run(runs / name, [row(1, 5.0)], checkpoint=True, **more)
    os.utime(folder / "best" / "model.safetensors", ns=(written_ns, written_ns))
    return folder


def test_runs_follow_the_shipped_models_newest_first_and_broken_folders_hide_none(runs):
    offered = OfferedModels("qam-detr-pocket", runs)
    trained(runs, "first", 1000)
    trained(runs, "group/second", 2000, finished=True)
    write_run(runs / "young", [])
    (runs / "half" / "best").mkdir(parents=True)
    (runs / "odd" / "run.json").mkdir(parents=True)
    (runs / "loop").symlink_to(runs / "loop")
    assert list(offered.models()) == [*SHIPPED, "run: group/second", "run: first"]
    shutil.rmtree(runs / "first")
    assert "run: first" not in offered.models()
    for elsewhere in (None, runs / "nowhere"):
        assert list(OfferedModels("qam-detr-pocket", elsewhere).models()) == SHIPPED
    for number in range(MAX_RUNS + 1):
        trained(runs, f"run-{number}", 3000 + number)
    assert len(offered.models()) == len(SHIPPED) + MAX_RUNS
    assert "run: run-0" not in offered.models()
    offered.offer("run: run-0", runs / "run-0" / "best")
    assert offered.folder("run: run-0") == str(runs / "run-0" / "best")
    told = str(offered.refusal("run: gone"))
    assert told.startswith("The model of the run 'gone' is no longer here: it was moved or removed; choose one of qam-detr-pocket")
    assert told.endswith("more that the page lists.")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("elsewhere/mine", "mine"), ("elsewhere/mine/best", "mine"), ("runs/second/best", "run: second"),
        ("elsewhere/qam-detr-pocket", "folder: qam-detr-pocket"),
    ],
)  # fmt: skip
def test_the_first_model_is_called_by_a_name_wherever_it_lies_and_listed_once(folder, name, runs, tmp_path):
    if name == "run: second":
        trained(runs, "second")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    offered = OfferedModels(str(tmp_path / folder), runs)
    assert (offered.first, list(offered.models())) == (name, [name, *SHIPPED])
    assert offered.folder(name) == str(tmp_path / folder)
    assert str(tmp_path) not in str(offered.refusal("nothing"))


@pytest.fixture
def configs(monkeypatch):
    """Two checkpoints that need not be here; of the hub's models, only those in the returned set are."""
    here = set()
    monkeypatch.setattr(base, "is_here", lambda name, model="": STREAMS[name].hub is None or name in here)
    calibrated = InferenceConfig(beta=0.2, beta_by_verifier={"pocket": 0.4})
    known = {"small": Config(), "big": Config(data=DataConfig(combo="A"), inference=calibrated)}

    def read(name):
        if name not in known:
            raise CheckpointError("no such checkpoint")
        return known[name]

    monkeypatch.setattr(models, "read_config", read)
    return here


def test_models_encoders_and_verifiers_say_what_they_bring_and_need(configs):
    for streams, told in (
        (["pocket", "mel_stats"], "here"),
        (["laion_clap", "pocket"], "needs a download of 618 MB"),
        (["laion_clap", "ms_clap", "wavlm_base_plus"], "needs a download of 1.7 GB"),
    ):
        assert models.needs_of(streams) == told
    offered = {"small": "small", "run: big": "big", "gone": "gone"}
    assert [label for label, _ in models.model_choices(offered)] == [
        "small · pocket encoders, here", "run: big · encoders A, needs a download of 1.7 GB", "gone · cannot be read"
    ]  # fmt: skip
    labels = {combo: label for label, combo in models.encoder_choices(offered)}
    assert labels["pocket"] == "Pocket, made by this project · here"
    assert labels["A"] == "A: LAION-CLAP + MS-CLAP + WavLM base+ · needs a download of 1.7 GB"
    assert labels["B"].endswith("needs a download of 1.3 GB; no model here reads them yet")
    assert models.models_with("A", offered) == ["run: big"]
    assert "train one" in models.how_to_get_encoder("B")
    assert [models.own_beta(*given) for given in (("big", "pocket"), ("big", "server"), ("gone", "pocket"))] == [0.4, 0.2, None]
    configs |= {"laion_clap", "wavlm_base_plus"}
    assert models.needs_of(["laion_clap", "wavlm_base_plus"]) == "here"
    assert models.needs_of(["ms_clap"]) == "needs a download of 691 MB", "its tokeniser comes with it"
    assert models.needs_of(["roberta"], {"roberta": "somebody/model"}) == "needs a download"
    url = "http://user:secret@models.example:8000/v1"
    offered = ("none", "pocket", "qwen2.5-omni", "server")
    settings = AppSettings(verifiers=offered, verifier_model="Qwen/Qwen2.5-Omni-3B", verifier_url=url)
    verifiers = {name: label for label, name in models.verifier_choices(settings)}
    assert tuple(verifiers) == offered
    assert "needs a download of 12 GB" in verifiers["qwen2.5-omni"]
    assert verifiers["server"].endswith("models.example:8000")


def test_loads_once_for_visitors_who_come_together():
    loads, start = [], threading.Barrier(4)
    shared = SharedRetriever(lambda _: loads.append(1) or FakeRetriever())
    with ThreadPoolExecutor(4) as visitors:
        got = list(visitors.map(lambda _: (start.wait(), shared.get())[1], range(4)))
    assert (len(loads), len({id(retriever) for retriever in got})) == (1, 1)


def test_warm_up_runs_the_whole_way_and_survives_failure_which_the_next_visitor_may_not_meet(caplog):
    retriever, outcomes = FakeRetriever(), [CheckpointError("No checkpoint 'x'; train one."), None]

    def load(_):
        if error := outcomes.pop(0):
            raise error
        return retriever

    shared = SharedRetriever(load)
    for _ in range(2):
        shared.warm_up_in_background().join(timeout=20)
    assert "could not be warmed up: No checkpoint 'x'; train one." in caplog.text
    assert "Traceback" not in caplog.text
    assert (retriever.encoded, retriever.queries) == (["memory"], ["a sound"])


def test_the_one_used_longest_ago_goes():
    loads = []
    shared = SharedRetriever(lambda name: loads.append(name) or FakeRetriever())
    others = [f"other-{number}" for number in range(KEPT_MODELS)]
    for name in (name for other in others for name in ("often", other)):
        shared.get(name)
    shared.get("often")
    assert loads == ["often", *others], "what is used all the time stays"
    shared.get(others[0])
    assert loads[-1] == others[0]


def test_what_was_trained_is_offered_by_its_run_read_anew_when_training_went_on_and_missed_when_removed(tmp_path):
    loads = []
    best = write_run(tmp_path / "mine", [row(1, 5.0)], checkpoint=True) / "best"
    shared = SharedRetriever(lambda folder: loads.append(folder) or FakeRetriever(), AppSettings(checkpoint="models/first"), runs=tmp_path)
    assert [shared.offered()[place] for place in (0, 1, -1)] == ["first", "qam-detr-pocket", "run: mine"]
    shared.get()
    for _ in range(2):
        shared.open_offered("run: mine", "choose another")
    os.utime(best / "model.safetensors", ns=(1, 1))
    shared.get("run: mine")
    assert loads == ["models/first", *[str(best)] * 2]
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"The model of the run 'mine' is no longer here.*choose one of first") as caught:
        shared.open_offered("run: mine", "choose another")
    assert str(tmp_path) not in str(caught.value)


def test_a_broken_checkpoint_is_told_by_its_name_and_the_remedies_add_up(tmp_path):
    write_run(tmp_path / "mine", [row(1, 5.0)], checkpoint=True)

    def load(folder):
        raise CheckpointError("model.safetensors is damaged", "copy it again", folder)

    for shared, name in (
        (SharedRetriever(load, runs=tmp_path), "run: mine"),
        (SharedRetriever(load, AppSettings(checkpoint=str(tmp_path / "mine" / "best"))), "mine"),
    ):
        with pytest.raises(CheckpointError) as caught:
            shared.open_offered(name, "choose another")
        assert str(caught.value) == f"Checkpoint {name}: model.safetensors is damaged; copy it again, or choose another."


def test_large_verifiers_are_made_once_with_the_settings_of_the_page(monkeypatch):
    made = []
    from qamdetr.ui import gpu

    monkeypatch.setattr(gpu, "open_verifier", lambda name, settings, trained: made.append((name, settings.verifier_url)) or object())
    shared = SharedRetriever(FakeRetriever, AppSettings(verifiers=("none", "server"), verifier_url="http://localhost:8000/v1"))
    retriever = FakeRetriever()
    assert [shared.verifier(name, retriever) for name in ("none", "pocket")] == ["none", "pocket"]
    assert shared.verifier("server", retriever) is shared.verifier("server", retriever)
    assert made == [("server", "http://localhost:8000/v1")]


def test_a_verifier_and_an_encoder_from_outside_are_offered_by_importing_them(configs):
    class Ear(Verifier):
        name, needs_audio = "ear", False

    verifier("ear", label="Ear: listens once more", hears=False)(Ear)
    stream("beats", dim=768, rate_hz=16_000, hub=None, label="BEATs")(type("Beats", (AudioStream,), {}))
    try:
        settings = AppSettings.from_environment({})
        assert settings.verifiers == ("none", "pocket", "ear")
        assert ("Ear: listens once more", "ear") in models.verifier_choices(settings)
        assert models.needs_of(["beats"]) == "here"
    finally:
        del VERIFIERS["ear"], STREAMS["beats"]
