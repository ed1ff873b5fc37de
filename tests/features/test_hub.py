"""Models are found in the hub's cache, downloaded once, or told in one line; tokenisers know which letters their tokens stand for."""

from __future__ import annotations

import logging
import shutil
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
from qamdetr.features.hub import HubTokenizer
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
    """Stands in for the hub's client: `files` are those of any repository but `nobody`'s."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.files = cache, []

    def model_info(self, repo: str, **_: object) -> SimpleNamespace:
        if repo.startswith("nobody/"):
            raise OSError(f"404 Client Error.\n\nRepository Not Found for {repo}.")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def download(self, repo: str, *, revision: str, allow_patterns: list[str], **_: object) -> None:
        folder = self.cache / f"models--{repo.replace('/', '--')}" / "snapshots" / revision
        folder.mkdir(parents=True, exist_ok=True)
        for name in set(self.files) & set(allow_patterns):
            (folder / name).write_text(name)


@pytest.fixture
def online(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Online:
    hub = Online(cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)
    return hub


@pytest.mark.parametrize("left_out", [None, *WAVLM_FILES])
def test_a_snapshot_is_found_where_it_is_complete(cache: Path, tmp_path: Path, left_out: str | None) -> None:
    snapshot = put_in_cache(cache, "wavlm_base", model_folder(tmp_path / "saved", *(set(WAVLM_FILES) - {left_out})))
    if left_out is None:
        assert locate("wavlm_base") == locate("wavlm_base", str(snapshot)) == snapshot
        return
    with pytest.raises(CheckpointError, match="not on this machine"):
        locate("wavlm_base")


def test_what_is_missing_is_said_in_one_line(cache: Path) -> None:
    for name, model in [*HUBS.items(), ("ms_clap", GPT2_TOKENIZER), ("laion_clap", ROBERTA_TOKENIZER)]:
        if model.revision != "main":  # whose commit could not be looked up; its files are asked for
            assert all(set(group) & set(model.files) for group in model.groups)
            assert len(bytes.fromhex(model.revision)) == 20, "a commit: what it holds never changes"
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
    for absent in (str(tmp_path / "absent"), "./absent", "absent", "../absent/b"):
        with pytest.raises(CheckpointError, match=r"is to come from .*absent"):
            locate("laion_clap", absent)


def test_a_default_is_downloaded_once_with_a_note(online: Online, caplog: pytest.LogCaptureFixture) -> None:
    online.files = ["CLAP_weights_2023.pth", "CLAP_weights_2022.pth"]
    with caplog.at_level(logging.WARNING, logger=hub.__name__):
        folder = locate("ms_clap")
    assert "Downloading microsoft/msclap (about 690 MB) for the encoder ms_clap" in caplog.text
    assert [path.name for path in folder.iterdir()] == ["CLAP_weights_2023.pth"]
    online.model_info = None  # type: ignore[assignment]
    assert locate("ms_clap") == folder, "what is here is not asked for again"


def test_of_another_hub_id_the_safe_weights_and_small_files_are_taken(online: Online, cache: Path) -> None:
    online.files = ["config.json", "tokenizer.json", "weights.gguf"]
    theirs = f"somebody/theirs@{'2' * 40}"
    with pytest.raises(CheckpointError, match=r"somebody/theirs at revision 2+ has no model\.safetensors or pytorch_model\.bin"):
        locate("roberta", theirs)
    assert not list(cache.rglob("config.json"))
    taken = ["config.json", "model.safetensors", "tokenizer.json", "vocab.json"]
    online.files = [*taken, "pytorch_model.bin", "tf_model.h5", "README.md"]
    assert sorted(path.name for path in locate("roberta", theirs).iterdir()) == taken
    with pytest.raises(CheckpointError, match=r"roberta \(nobody/nothing\) is not on .*Not Found.* nobody/nothing --revision main`"):
        locate("roberta", "nobody/nothing")


def test_an_interrupted_download_is_completed(online: Online, cache: Path, tmp_path: Path) -> None:
    put_in_cache(cache, "wavlm_base", model_folder(tmp_path / "saved", "config.json"))
    with pytest.raises(CheckpointError, match="the download is not complete"):
        locate("wavlm_base")
    online.files = [*HUBS["wavlm_base"].files]
    assert sorted(path.name for path in locate("wavlm_base").iterdir()) == sorted(online.files)


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


def test_tokens_that_stand_apart_are_never_joined(tmp_path: Path) -> None:
    """As the package msclap reads `!`, which its vocabulary joins to other signs."""
    save_tiny_gpt2_tokenizer(tmp_path)
    joined, apart = (HubTokenizer(tmp_path, "ms_clap", max_tokens=60, vocab_size=500, apart=signs) for signs in ((), ("!",)))
    assert joined.encode("loud!!")[1][-1] == (4, 6)
    assert apart.encode("loud!!")[1][-2:] == ((4, 5), (5, 6))
