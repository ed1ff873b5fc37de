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
from qamdetr.ui import gpu, models
from qamdetr.ui.models import KEPT_MODELS, MAX_RUNS, OfferedModels, SharedRetriever
from qamdetr.ui.settings import AppSettings
from qamdetr.verifiers import VERIFIERS, Verifier, verifier

SHIPPED = ["qam-detr-pocket", "ladder-1-baseline"]


@pytest.fixture(autouse=True)
def _shipped(monkeypatch):
    monkeypatch.setattr(models, "available_checkpoints", lambda: SHIPPED)


def trained(folder, written_ns=10**9):
    best = write_run(folder, [row(1, 5.0)], checkpoint=True) / "best"
    os.utime(best / "model.safetensors", ns=(written_ns, written_ns))
    return best


def test_runs_follow_the_shipped_models_newest_first_and_broken_folders_hide_none(tmp_path):
    offered = OfferedModels("qam-detr-pocket", tmp_path)
    trained(tmp_path / "first", 1000)
    trained(tmp_path / "group" / "second", 2000)
    write_run(tmp_path / "young", [])
    (tmp_path / "half" / "best").mkdir(parents=True)
    (tmp_path / "odd" / "run.json").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert offered.offered() == [*SHIPPED, "run: group/second", "run: first"]
    for elsewhere in (None, tmp_path / "nowhere"):
        assert OfferedModels("qam-detr-pocket", elsewhere).offered() == SHIPPED
    for number in range(MAX_RUNS + 1):
        best = trained(tmp_path / f"run-{number}", 4000 - number)
    assert len(offered.models()) == len(SHIPPED) + MAX_RUNS
    assert f"run: run-{MAX_RUNS}" not in offered.models()
    offered.offer(f"run: run-{MAX_RUNS}", best)
    assert offered.folder(f"run: run-{MAX_RUNS}") == str(best)
    assert str(offered.refusal("run: gone")).endswith("more that the page lists.")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("elsewhere/mine", "mine"), ("elsewhere/mine/best", "mine"), ("runs/second/best", "run: second"),
        ("elsewhere/qam-detr-pocket", "folder: qam-detr-pocket"),
    ],
)  # fmt: skip
def test_the_first_model_is_called_by_a_name_wherever_it_lies_and_listed_once(folder, name, tmp_path):
    trained(tmp_path / folder if name != "run: second" else tmp_path / "runs" / "second")
    offered = OfferedModels(str(tmp_path / folder), tmp_path / "runs")
    assert (offered.first, offered.offered(), offered.folder(name)) == (name, [name, *SHIPPED], str(tmp_path / folder))
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
    offered = {"small": "small", "run: big": "big", "gone": "gone"}
    assert [label for label, _ in models.model_choices(offered)] == [
        "small · pocket encoders, here", "run: big · encoders A, needs a download of 1.7 GB", "gone · cannot be read"
    ]  # fmt: skip
    labels = {combo: label for label, combo in models.encoder_choices(offered)}
    assert labels["pocket"] == "Pocket, made by this project · here"
    assert labels["A"] == "A: LAION-CLAP + MS-CLAP + WavLM base+ · needs a download of 1.7 GB"
    assert labels["B"].endswith("needs a download of 1.3 GB; no model here reads them yet")
    assert "train one" in models.how_to_get_encoder("B")
    assert [models.own_beta(*given) for given in (("big", "pocket"), ("big", "server"), ("gone", "pocket"))] == [0.4, 0.2, None]
    configs |= {"laion_clap"}
    assert models.needs_of(["laion_clap", "ms_clap"]) == "needs a download of 691 MB", "its tokeniser comes with it"
    assert models.needs_of(["roberta"], {"roberta": "somebody/model"}) == "needs a download"
    names = ("none", "pocket", "qwen2.5-omni", "server")
    url = "http://user:secret@models.example:8000/v1"
    choices = models.verifier_choices(AppSettings(verifiers=names, verifier_model="Qwen/Qwen2.5-Omni-3B", verifier_url=url))
    assert tuple(name for _, name in choices) == names
    assert "needs a download of 12 GB" in choices[2][0]
    assert choices[3][0].endswith("models.example:8000")


def test_loads_once_for_visitors_who_come_together_and_the_one_used_longest_ago_goes():
    loads, start = [], threading.Barrier(4)
    shared = SharedRetriever(lambda name: loads.append(name) or FakeRetriever())
    with ThreadPoolExecutor(4) as visitors:
        got = list(visitors.map(lambda _: (start.wait(), shared.get("often"))[1], range(4)))
    assert (loads, len({id(retriever) for retriever in got})) == (["often"], 1)
    others = [f"other-{number}" for number in range(KEPT_MODELS)]
    for name in (name for other in others for name in (other, "often")):
        shared.get(name)
    assert loads == ["often", *others], "what is used all the time stays"
    shared.get(others[0])
    assert loads[-1] == others[0]


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


def test_a_run_is_read_anew_when_its_training_went_on_and_missed_when_removed(tmp_path):
    loads, best = [], trained(tmp_path / "mine")
    shared = SharedRetriever(lambda folder: loads.append(folder) or FakeRetriever(), runs=tmp_path)
    for written_ns in (1, 1, 2):
        os.utime(best / "model.safetensors", ns=(written_ns, written_ns))
        shared.open_offered("run: mine", "choose another")
    assert loads == [str(best)] * 2
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"The model of the run 'mine' is no longer here.*choose one of qam-detr-pocket") as caught:
        shared.open_offered("run: mine", "choose another")
    assert str(tmp_path) not in str(caught.value)


def test_a_broken_checkpoint_is_told_by_its_name_and_the_remedies_add_up(tmp_path):
    best = trained(tmp_path / "mine")

    def load(folder):
        raise CheckpointError("model.safetensors is damaged", "copy it again", folder)

    first = AppSettings(checkpoint=str(best))
    for shared, name in ((SharedRetriever(load, runs=tmp_path), "run: mine"), (SharedRetriever(load, first), "mine")):
        with pytest.raises(CheckpointError) as caught:
            shared.open_offered(name, "choose another")
        assert str(caught.value) == f"Checkpoint {name}: model.safetensors is damaged; copy it again, or choose another."


def test_large_verifiers_are_made_once_with_the_settings_of_the_page(monkeypatch, retriever):
    made = []
    monkeypatch.setattr(gpu, "open_verifier", lambda name, settings, trained: made.append((name, settings.verifier_url)) or object())
    shared = SharedRetriever(FakeRetriever, AppSettings(verifiers=("none", "server"), verifier_url="http://localhost:8000/v1"))
    assert [shared.verifier(name, retriever) for name in ("none", "pocket")] == ["none", "pocket"]
    assert shared.verifier("server", retriever) is shared.verifier("server", retriever)
    assert made == [("server", "http://localhost:8000/v1")]


def test_a_verifier_and_an_encoder_from_outside_are_offered_by_importing_them(configs):
    verifier("ear", label="Ear: listens once more", hears=False)(type("Ear", (Verifier,), {"name": "ear", "needs_audio": False}))
    stream("beats", dim=768, rate_hz=16_000, hub=None, label="BEATs")(type("Beats", (AudioStream,), {}))
    try:
        settings = AppSettings.from_environment({})
        assert settings.verifiers == ("none", "pocket", "ear")
        assert ("Ear: listens once more", "ear") in models.verifier_choices(settings)
        assert models.needs_of(["beats"]) == "here"
    finally:
        del VERIFIERS["ear"], STREAMS["beats"]
