"""Models are found where the hub's client keeps them, downloaded where they are missing, and asked for in one line where neither works."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_models import put_in_cache

from qamdetr.errors import CheckpointError
from qamdetr.features import hub
from qamdetr.features.base import COMBOS
from qamdetr.features.hub import HUB_MODELS, locate

POCKET = {"pocket", "mel_stats"}
TOKENIZERS = {"gpt2": "ms_clap", "roberta_tokenizer": "laion_clap"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def model_folder(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


class FakeHub(BaseHTTPRequestHandler):
    """Serves `files` of any repository as the hub's API does; keeps what was asked for."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        type(self).asked.append(path)
        if path.startswith("/api/") and "/tree/" in path:
            self.send([{"type": "file", "path": name, "size": len(data), "oid": "1" * 40} for name, data in self.files.items()])
        elif path.startswith("/api/"):
            self.send({"id": "org/name", "sha": self.commit(path), "siblings": [{"rfilename": name} for name in self.files]})
        elif "/resolve/" in path and path.rsplit("/", 1)[1] in self.files:
            self.send(self.files[path.rsplit("/", 1)[1]], ETag=f'"{path.rsplit("/", 1)[1]}"', **{"X-Repo-Commit": self.commit(path)})
        else:
            self.refuse()

    def refuse(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    def commit(self, path: str) -> str:
        """The commit that the path names, or that of the branch."""
        return next((part for part in path.split("/") if len(part) == 40), "2" * 40)

    def send(self, content: object, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def online(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    """A hub on this machine."""

    class Handler(FakeHub):
        files: dict[str, bytes] = {}  # noqa: RUF012 - filled by each test
        asked: list[str] = []  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    point_to(monkeypatch, server.server_address[1])
    yield Handler
    server.shutdown()
    server.server_close()


def point_to(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_every_stream_has_a_model_with_the_files_it_needs() -> None:
    streams = {stream for combo in COMBOS.values() for stream in (*combo.audio_streams, *combo.text_streams)}
    assert streams - POCKET == HUB_MODELS.keys() - TOKENIZERS
    for model in HUB_MODELS.values():
        assert all(set(group) & set(model.files) for group in model.needed)
        assert len(bytes.fromhex(model.revision)) == 20, "a commit: what it holds never changes"
        assert model.megabytes > 0


def test_a_complete_snapshot_is_found(cache: Path, tmp_path: Path) -> None:
    saved = model_folder(tmp_path / "saved", "config.json", "preprocessor_config.json", "model.safetensors")
    snapshot = put_in_cache(cache, "wavlm_base", saved)
    assert locate("wavlm_base") == snapshot


def test_a_branch_is_followed_only_where_it_is_asked_for(cache: Path, tmp_path: Path) -> None:
    snapshot = put_in_cache(cache, "ms_clap", model_folder(tmp_path / "clap", "CLAP_weights_2023.pth"), branch="main")
    assert locate("ms_clap", "microsoft/msclap") == snapshot
    with pytest.raises(CheckpointError, match="not on this machine"):
        locate("ms_clap")


@pytest.mark.parametrize("left_out", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_partial_snapshot_is_not_enough(cache: Path, tmp_path: Path, left_out: str) -> None:
    names = {"config.json", "preprocessor_config.json", "model.safetensors"} - {left_out}
    put_in_cache(cache, "wavlm_base", model_folder(tmp_path / "saved", *names))
    with pytest.raises(CheckpointError, match="not on this machine"):
        locate("wavlm_base")


def test_a_link_to_a_removed_file_is_not_enough(cache: Path, tmp_path: Path) -> None:
    saved = model_folder(tmp_path / "saved", "config.json", "preprocessor_config.json", "model.safetensors")
    snapshot = put_in_cache(cache, "wavlm_base", saved)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(cache / "gone")
    with pytest.raises(CheckpointError, match="not on this machine"):
        locate("wavlm_base")


def test_what_is_missing_is_said_in_one_line(cache: Path) -> None:
    for name, model in HUB_MODELS.items():
        with pytest.raises(CheckpointError) as caught:
            locate(name)
        message = str(caught.value)
        assert "\n" not in message
        called = {"gpt2": "the tokeniser of ms_clap", "roberta_tokenizer": "the tokeniser of laion_clap"}.get(name, f"the encoder {name}")
        assert message.startswith("T" + called[1:])
        for part in (model.repo, f"about {model.megabytes} MB", "HF_HUB_OFFLINE is set", model.command, "combo 'pocket'"):
            assert part in message
        if name in TOKENIZERS:
            assert re.search(rf"beside the \w+ of {TOKENIZERS[name]}", message)
        else:
            assert f"--encoder {name}=FOLDER" in message


def test_the_command_is_one_that_the_client_understands(tmp_path: Path) -> None:
    program, *arguments = shlex.split(HUB_MODELS["laion_clap"].command)
    script = Path(sys.executable).with_name(program)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120)
    told = done.stdout + done.stderr
    # Understood, and stopped by having no network; an unknown option would be "usage".
    assert done.returncode != 0
    assert "offline" in told.lower() or "outgoing traffic" in told.lower(), told
    assert "usage" not in told.lower()
    assert "no such option" not in told.lower()


def test_hf_home_and_offline_mode_are_those_of_the_environment(tmp_path: Path) -> None:
    saved = model_folder(tmp_path / "saved", "tokenizer.json")
    snapshot = put_in_cache(tmp_path / "home" / "hub", "gpt2", saved)
    program = "from qamdetr.features.hub import locate\nprint(locate('gpt2'))\nlocate('roberta')"
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == str(snapshot)
    assert "HF_HUB_OFFLINE is set" in done.stderr


def test_a_folder_or_file_is_taken_as_it_is(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "mine", "weights.pt")
    assert locate("laion_clap", str(folder)) == folder
    assert locate("laion_clap", str(folder / "weights.pt")) == folder / "weights.pt"
    monkeypatch.chdir(tmp_path)
    assert locate("laion_clap", "mine/weights.pt") == Path("mine/weights.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("laion_clap", "~/mine") == folder
    for absent in (str(tmp_path / "absent"), "./absent", "absent", "../a/b"):
        with pytest.raises(CheckpointError, match=r"is to come from .*absent|is to come from \.\./a/b"):
            locate("laion_clap", absent)


def test_another_hub_id_may_be_named_with_a_revision(cache: Path, tmp_path: Path) -> None:
    saved = model_folder(tmp_path / "saved", "config.json", "processor_config.json", "tokenizer.json", "pytorch_model.bin")
    snapshot = cache / "models--laion--larger_clap_general" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    saved.rename(snapshot)
    assert locate("laion_clap", f"laion/larger_clap_general@{'a' * 40}") == snapshot
    with pytest.raises(CheckpointError, match="hf download laion/larger_clap_general --revision main`") as caught:
        locate("laion_clap", "laion/larger_clap_general")
    assert " MB" not in str(caught.value), "the size of the default is not that of another model"


def test_a_default_is_downloaded_once_with_a_note(online: type[FakeHub], cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    online.files = {"CLAP_weights_2023.pth": b"weights", "CLAP_weights_2022.pth": b"old" * 100}
    with caplog.at_level(logging.WARNING, logger=hub.__name__):
        folder = locate("ms_clap")
    assert "Downloading microsoft/msclap (about 690 MB) for the encoder ms_clap" in caplog.text
    assert cache in folder.parents
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"CLAP_weights_2023.pth": b"weights"}
    online.asked.clear()
    assert locate("ms_clap") == folder
    assert not online.asked, "what is here is not asked for again"


def test_of_another_hub_id_the_safe_weights_and_small_files_are_taken(online: type[FakeHub]) -> None:
    names = ["config.json", "tokenizer.json", "vocab.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "README.md"]
    online.files = {name: name.encode() for name in names}
    folder = locate("roberta", "somebody/roberta-of-theirs")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json", "vocab.json"]


def test_a_hub_id_of_another_kind_is_refused_before_the_download(online: type[FakeHub], cache: Path) -> None:
    online.files = {"config.json": b"{}", "tokenizer.json": b"{}", "weights.gguf": b"x"}
    with pytest.raises(CheckpointError, match=r"somebody/theirs at revision main has no model\.safetensors or pytorch_model\.bin"):
        locate("roberta", "somebody/theirs")
    assert not list(cache.rglob("config.json"))


def test_an_interrupted_download_is_completed(online: type[FakeHub], cache: Path, tmp_path: Path) -> None:
    saved = model_folder(tmp_path / "saved", "config.json")
    put_in_cache(cache, "wavlm_base", saved)
    online.files = dict.fromkeys(HUB_MODELS["wavlm_base"].files, b"{}")
    folder = locate("wavlm_base")
    assert sorted(path.name for path in folder.iterdir()) == sorted(HUB_MODELS["wavlm_base"].files)


def test_an_unknown_id_is_said_in_one_line(online: type[FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "do_GET", FakeHub.refuse)
    with pytest.raises(
        CheckpointError, match=r"encoder roberta \(nobody/nothing\) is not on this machine and cannot be downloaded"
    ) as caught:
        locate("roberta", "nobody/nothing")
    assert "there is none called nobody/nothing" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_silent_network_does_not_hang(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_REACH_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        point_to(monkeypatch, silent.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(CheckpointError, match="cannot be downloaded"):
            locate("wavlm_base")
    assert time.monotonic() - started < 5
