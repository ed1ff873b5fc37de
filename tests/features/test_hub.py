"""Models are found in the hub's cache, downloaded once, or told in one line; tokenisers know which letters their tokens stand for."""

from __future__ import annotations

import logging
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_models import put_in_cache, save_tiny_gpt2_tokenizer, save_tiny_roberta_tokenizer
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.features import hub
from qamdetr.features.base import STREAMS
from qamdetr.features.clap import ROBERTA_TOKENIZER
from qamdetr.features.hub import Hub, HubTokenizer
from qamdetr.features.ms_clap import GPT2_TOKENIZER

HUBS = {name: encoder.hub for name, encoder in STREAMS.items() if encoder.hub}
WAVLM_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


def locate(name: str, override: str = "") -> Path:
    return hub.locate(name, HUBS[name], override)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def model_folder(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


class Online:
    """Stands in for the hub's client: `files` are those of any repository but `nobody`'s; keeps what was downloaded."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.files, self.asked = cache, [], []

    def model_info(self, repo: str, **_: object) -> SimpleNamespace:
        if repo.startswith("nobody/"):
            raise OSError(f"404 Client Error.\n\nRepository Not Found for {repo}.")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def download(self, repo: str, *, revision: str, allow_patterns: list[str], **_: object) -> None:
        self.asked.append(repo)
        home = self.cache / f"models--{repo.replace('/', '--')}"
        commit = revision if len(revision) == 40 else "2" * 40
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / revision).write_text(commit)
        (home / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        for name in set(self.files) & set(allow_patterns):
            (home / "snapshots" / commit / name).write_text(name)


@pytest.fixture
def online(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Online:
    hub = Online(cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)
    return hub


@pytest.mark.parametrize("model", [*HUBS.values(), GPT2_TOKENIZER, ROBERTA_TOKENIZER])
def test_every_model_has_a_commit_and_the_files_it_needs(model: Hub) -> None:
    assert all(set(group) & set(model.files) for group in model.groups)
    assert len(bytes.fromhex(model.revision)) == 20, "a commit: what it holds never changes"
    assert model.megabytes > 0


@pytest.mark.parametrize("left_out", [None, *WAVLM_FILES])
def test_a_snapshot_is_found_where_it_is_complete(cache: Path, tmp_path: Path, left_out: str | None) -> None:
    snapshot = put_in_cache(cache, "wavlm_base", model_folder(tmp_path / "saved", *(set(WAVLM_FILES) - {left_out})))
    if left_out is None:
        assert locate("wavlm_base") == locate("wavlm_base", str(snapshot)) == snapshot
        return
    for _ in ("nothing", "a link to nothing"):
        with pytest.raises(CheckpointError, match="not on this machine"):
            locate("wavlm_base")
        (snapshot / left_out).unlink(missing_ok=True)
        (snapshot / left_out).symlink_to(cache / "gone")


def test_what_is_missing_is_said_in_one_line(cache: Path) -> None:
    wanted = [*HUBS.items(), ("ms_clap", GPT2_TOKENIZER), ("laion_clap", ROBERTA_TOKENIZER)]
    for name, model in wanted:
        with pytest.raises(CheckpointError) as caught:
            hub.locate(name, model)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"The tokeniser of {name}" if model.called else f"The encoder {name}")
        remedy = f"beside the {'weights' if name == 'ms_clap' else 'checkpoint'} of {name}" if model.called else f"--encoder {name}=FOLDER"
        for part in (model.repo, f"about {model.megabytes} MB", "HF_HUB_OFFLINE is set", model.command, "combo 'pocket'", remedy):
            assert part in message


def test_a_folder_or_file_is_taken_as_it_is(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "mine", "weights.pt")
    assert locate("laion_clap", str(folder)) == folder
    monkeypatch.chdir(tmp_path)
    assert locate("laion_clap", "mine/weights.pt") == Path("mine/weights.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("laion_clap", "~/mine") == folder
    for absent in (str(tmp_path / "absent"), "./absent", "absent", "../a/b"):
        with pytest.raises(CheckpointError, match=r"is to come from .*absent|is to come from \.\./a/b"):
            locate("laion_clap", absent)


def test_another_hub_id_may_be_named_with_a_revision(cache: Path) -> None:
    snapshot = cache / "models--laion--larger_clap_general" / "snapshots" / ("a" * 40)
    model_folder(snapshot, "config.json", "processor_config.json", "tokenizer.json", "pytorch_model.bin")
    assert locate("laion_clap", f"laion/larger_clap_general@{'a' * 40}") == snapshot
    with pytest.raises(CheckpointError, match="hf download laion/larger_clap_general --revision main`") as caught:
        locate("laion_clap", "laion/larger_clap_general")
    assert " MB" not in str(caught.value), "the size of the default is not that of another model"


def test_a_default_is_downloaded_once_with_a_note(online: Online, caplog: pytest.LogCaptureFixture) -> None:
    online.files = ["CLAP_weights_2023.pth", "CLAP_weights_2022.pth"]
    with caplog.at_level(logging.WARNING, logger=hub.__name__):
        folder = locate("ms_clap")
    assert "Downloading microsoft/msclap (about 690 MB) for the encoder ms_clap" in caplog.text
    assert [path.name for path in folder.iterdir()] == ["CLAP_weights_2023.pth"]
    assert locate("ms_clap") == folder
    assert len(online.asked) == 1, "what is here is not asked for again"


def test_of_another_hub_id_the_safe_weights_and_small_files_are_taken(online: Online, cache: Path) -> None:
    online.files = ["config.json", "tokenizer.json", "weights.gguf"]
    with pytest.raises(CheckpointError, match=r"somebody/theirs at revision main has no model\.safetensors or pytorch_model\.bin"):
        locate("roberta", "somebody/theirs")
    assert not list(cache.rglob("config.json"))
    taken = ["config.json", "model.safetensors", "tokenizer.json", "vocab.json"]
    online.files = [*taken, "pytorch_model.bin", "tf_model.h5", "README.md"]
    assert sorted(path.name for path in locate("roberta", "somebody/theirs").iterdir()) == taken


def test_an_interrupted_download_is_completed(online: Online, cache: Path, tmp_path: Path) -> None:
    put_in_cache(cache, "wavlm_base", model_folder(tmp_path / "saved", "config.json"))
    with pytest.raises(CheckpointError, match="the download is not complete"):
        locate("wavlm_base")
    online.files = [*HUBS["wavlm_base"].files]
    assert sorted(path.name for path in locate("wavlm_base").iterdir()) == sorted(online.files)


def test_an_unknown_id_is_said_in_one_line(online: Online) -> None:
    with pytest.raises(CheckpointError, match=r"roberta \(nobody/nothing\) is not on this machine and cannot be downloaded") as caught:
        locate("roberta", "nobody/nothing")
    assert "there is none called nobody/nothing" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_silent_network_does_not_hang(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "REACH_SECONDS", 0.3)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(CheckpointError, match="cannot be downloaded"):
            locate("wavlm_base")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HubTokenizer]:
    roberta, gpt2 = (tmp_path_factory.mktemp(name) for name in ("roberta", "gpt2"))
    save_tiny_roberta_tokenizer(roberta)
    save_tiny_gpt2_tokenizer(gpt2)
    return {
        "roberta": HubTokenizer(roberta, "roberta", max_tokens=60, vocab_size=500),
        "gpt2": HubTokenizer(gpt2, "ms_clap", max_tokens=60, vocab_size=500, suffix=" <|endoftext|>"),
    }


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
@given(query=st.text(alphabet="abz äöß漢字🐶é.\t\n ", min_size=1, max_size=14))
@settings(max_examples=50, deadline=None)
def test_ranges_are_in_order_and_miss_no_letter(tokenizers: dict, name: str, query: str) -> None:
    ids, offsets = tokenizers[name].encode(query)
    assert len(ids) == len(offsets)
    ranges = [(begin, end) for begin, end in offsets if begin < end]
    assert ranges == sorted(ranges)
    assert all(not query[begin].isspace() and not query[end - 1].isspace() for begin, end in ranges)
    covered = {at for begin, end in ranges for at in range(begin, end)}
    assert covered == {at for at, letter in enumerate(query) if not letter.isspace()}


def test_files_of_any_kind_give_the_stock_ids_and_nothing_is_cut(tmp_path: Path, tokenizers: dict) -> None:
    from transformers import AutoTokenizer

    tokenizer = save_tiny_roberta_tokenizer(tmp_path / "full")
    bare = shutil.copytree(tmp_path / "full", tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    stock, rebuilt = AutoTokenizer.from_pretrained(tmp_path / "full"), HubTokenizer(bare, "roberta", max_tokens=60, vocab_size=500)
    tokenizer.enable_truncation(4)  # stored settings of somebody's last call are not obeyed
    tokenizer.enable_padding(length=12)
    tokenizer.save(str(tmp_path / "full" / "tokenizer.json"))
    mine = HubTokenizer(tmp_path / "full", "roberta", max_tokens=60, vocab_size=500)
    for query in ("a dog barks twice", " Ein Hund bellt!", "🐶", "rain  on a roof"):
        assert mine.encode(query)[0] == rebuilt.encode(query)[0] == stock(query)["input_ids"]
    assert mine.probe == rebuilt.probe != tokenizers["gpt2"].probe
    with pytest.raises(QamDetrError, match="The query has 63 tokens; the roberta text encoder reads at most 60"):
        mine.encode(" ".join(["a"] * 61))
    (bare / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=f"{bare} cannot be read as the encoder roberta"):
        HubTokenizer(bare, "roberta", max_tokens=60, vocab_size=500)


def test_tokens_that_stand_apart_are_never_joined(tmp_path: Path) -> None:
    """As the package msclap reads `!`, which its vocabulary joins to other signs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(["!", "?", "a", "Ġ", "?!", "!!", "Ġ!"])}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[("?", "!"), ("!", "!"), ("Ġ", "!")]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.save(str(tmp_path / "tokenizer.json"))
    joined = HubTokenizer(tmp_path, "ms_clap", max_tokens=60, vocab_size=500)
    apart = HubTokenizer(tmp_path, "ms_clap", max_tokens=60, vocab_size=500, apart=("!",))
    assert joined.encode("a?!!")[0] == [2, 4, 0]
    assert apart.encode("a?!!") == ([2, 1, 0, 0], ((0, 1), (1, 2), (2, 3), (3, 4)))
