"""Which models the page offers, under which names, with what words, and how each is loaded once."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from doubles import FakeRetriever, row, write_run

from qamdetr.config import Config, InferenceConfig
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.export import EXPORTS, export
from qamdetr.features.base import STREAMS, AudioStream, stream
from qamdetr.ui import models
from qamdetr.ui.export_panel import export_choices
from qamdetr.ui.models import KEPT_MODELS, OfferedModels, SharedRetriever
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
    (tmp_path / "odd" / "run.json").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert offered.offered() == [*SHIPPED, "run: group/second", "run: first"]
    assert OfferedModels("qam-detr-pocket", tmp_path / "nowhere").offered() == SHIPPED


@pytest.mark.parametrize(
    ("folder", "name"),
    [("elsewhere/mine/best", "mine"), ("runs/second/best", "run: second"), ("elsewhere/qam-detr-pocket", "folder: qam-detr-pocket")],
)
def test_the_first_model_is_called_by_a_name_wherever_it_lies_and_listed_once(folder, name, tmp_path):
    trained(tmp_path / folder if name != "run: second" else tmp_path / "runs" / "second")
    offered = OfferedModels(str(tmp_path / folder), tmp_path / "runs")
    assert (offered.first, offered.offered(), offered.folder(name)) == (name, [name, *SHIPPED], str(tmp_path / folder))
    assert str(tmp_path) not in str(offered.refusal("nothing"))


def test_a_model_has_the_weight_it_was_calibrated_to_and_an_address_tells_no_password(monkeypatch):
    calibrated = Config(inference=InferenceConfig(beta=0.2, beta_by_verifier={"pocket": 0.4}))
    monkeypatch.setattr(models, "read_config", lambda _: calibrated)
    assert [models.own_beta("big", name) for name in ("pocket", "server")] == [0.4, 0.2]
    url = "http://user:secret@models.example:8000/v1"
    ((label, _),) = models.verifier_choices(AppSettings(verifiers=("server",), verifier_url=url))
    assert label.endswith("models.example:8000")
    assert "secret" not in label


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


def test_a_run_is_read_anew_when_its_training_went_on_and_told_by_its_name_when_broken_or_removed(tmp_path):
    loads, best, damage = [], trained(tmp_path / "mine"), CheckpointError("model.safetensors is damaged", "copy it again", "folder")

    def load(folder):
        loads.append(folder)
        if len(loads) > 2:
            raise damage
        return FakeRetriever()

    shared = SharedRetriever(load, runs=tmp_path)
    for written_ns in (1, 1, 2):
        os.utime(best / "model.safetensors", ns=(written_ns, written_ns))
        shared.open_offered("run: mine", "choose another")
    assert loads == [str(best)] * 2
    os.utime(best / "model.safetensors", ns=(3, 3))
    with pytest.raises(CheckpointError, match=r"^Checkpoint run: mine: model\.safetensors is damaged; copy it again, or choose another\.$"):
        shared.open_offered("run: mine", "choose another")
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"The model of the run 'mine' is no longer here.*choose one of qam-detr-pocket") as caught:
        shared.open_offered("run: mine", "choose another")
    assert str(tmp_path) not in str(caught.value)


def test_what_is_placed_from_outside_is_in_the_lists_of_the_page_by_importing_it(monkeypatch):
    for registry, name in ((VERIFIERS, "ear"), (STREAMS, "beats"), (EXPORTS, "plain")):
        monkeypatch.setitem(registry, name, None)  # taken away again at the end
    verifier("ear", label="Ear: listens once more", hears=False)(type("Ear", (Verifier,), {}))
    stream("beats", dim=768, rate_hz=16_000, hub=None, label="BEATs")(type("Beats", (AudioStream,), {}))
    export("plain", label="Plain text (.lst): a line per moment", ending=".lst")(lambda answers: "")
    settings = AppSettings.from_environment({})
    assert settings.verifiers == ("none", "pocket", "ear")
    assert ("Ear: listens once more", "ear") in models.verifier_choices(settings)
    assert models.needs_of(["beats"]) == "here"
    assert ("Plain text (.lst): a line per moment", "plain") in export_choices()
