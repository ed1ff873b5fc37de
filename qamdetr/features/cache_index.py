"""Finds the features of each recording in a cache's folder, by the content of its audio."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote

from qamdetr.errors import AudioError, DataError
from qamdetr.features.audio_key import AudioIdentity, AudioStamp, content_key
from qamdetr.features.feature_files import FeatureFile, restamp

_STEM_LETTERS = 120
_FILE_NAME = re.compile(r"(?P<stem>.+)\.(?P<key>[0-9a-f]{16})\.safetensors")
_NO_AUDIO = "0" * 16


class AudioIndex:
    """Which of the files `{vid}.{key of the audio}.safetensors` in a folder belongs to a recording as its audio is now.

    The folder is listed once, at the first question. Audio whose size, times and sample are those in a file's header is not hashed.
    """

    def __init__(self, folder: Path, recordings: Mapping[str, Path]) -> None:
        """Look at nothing yet.

        Args:
            folder: Where the features lie.
            recordings: `vid` -> audio file, where the audio is at hand.
        """
        self._folder = folder
        self._recordings = dict(recordings)
        self._listed: dict[str, dict[str, Path]] | None = None
        self._found: dict[str, Path] = {}
        self._unnoted: dict[str, AudioStamp] = {}

    def find(self, vid: str) -> Path | None:
        """Return the features of the audio as it is now; without audio, the only features of that name; None when there are none.

        Raises:
            DataError: Without audio, several.
            AudioError: The audio cannot be read.
        """
        if vid not in self._found:
            versions = self._versions_of(vid)
            if versions and vid in self._recordings:
                path = self._match(vid, versions)
            elif len(versions) > 1:
                raise DataError(
                    f"{self._folder} holds {len(versions)} versions of {vid!r}; name the audio folder so that the right one is known."
                )
            else:
                path = next(iter(versions.values()), None)
            if path is None:
                return None
            self._found[vid] = path
        return self._found[vid]

    def identify(self, vid: str) -> AudioIdentity | None:
        """Read the audio of a recording; None where it is not at hand.

        Raises:
            AudioError: It cannot be read.
        """
        audio = self._recordings.get(vid)
        try:
            return None if audio is None else AudioIdentity.of(audio)
        except OSError as error:
            raise _cannot_read(audio, error) from error

    def is_still(self, vid: str, identity: AudioIdentity) -> bool:
        """Whether the audio of a recording is what it was."""
        try:
            return AudioStamp.of(self._recordings[vid]) == identity.stamp
        except OSError:
            return False

    def place(self, vid: str, identity: AudioIdentity | None) -> Path:
        """Return where the features of a recording belong."""
        return self._folder / f"{_spell(vid)}.{identity.key if identity else _NO_AUDIO}.safetensors"

    def add(self, vid: str, path: Path) -> None:
        """Remember that the features of a recording, as its audio is now, were written."""
        self._versions_of(vid)[path.name.split(".")[-2]] = path
        self._found[vid] = path

    def note_stamp(self, vid: str) -> None:
        """Where audio had to be hashed to be recognised (it was copied, or touched), spare the next reader that.

        A cache that cannot be written, such as one shared for reading, stays as it is: hashing again costs time alone.

        Raises:
            DataError: The features are damaged.
        """
        stamp = self._unnoted.pop(vid, None)
        if stamp is not None:
            with contextlib.suppress(OSError):
                restamp(self._found[vid], stamp)

    def _match(self, vid: str, versions: Mapping[str, Path]) -> Path | None:
        audio = self._recordings[vid]
        try:
            stamp = AudioStamp.of(audio)
            for path in versions.values():
                if _stamp_in(path) == stamp:
                    return path
            found = versions.get(content_key(audio))
        except OSError as error:
            raise _cannot_read(audio, error) from error
        if found is not None:
            self._unnoted[vid] = stamp
        return found

    def _versions_of(self, vid: str) -> dict[str, Path]:
        """Features of every audio of that name, by its key."""
        if self._listed is None:
            self._listed = {}
            for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
                name = _FILE_NAME.fullmatch(path.name)
                if name:
                    self._listed.setdefault(name["stem"], {})[name["key"]] = path
        return self._listed.setdefault(_spell(vid), {})


def _stamp_in(path: Path) -> AudioStamp | None:
    try:
        with FeatureFile(path) as file:
            return file.stamp
    except DataError:
        return None


def _spell(vid: str) -> str:
    """Write a vid as a part of a file name; what would be too long for file systems ends in a hash of the whole."""
    name = vid.encode(errors="surrogateescape")  # names of files need not be UTF-8
    stem = quote(name, safe="")
    return stem if len(stem) <= _STEM_LETTERS else f"{stem[:_STEM_LETTERS]}~{blake2b(name, digest_size=8).hexdigest()}"


def _cannot_read(path: Path | None, error: OSError) -> AudioError:
    return AudioError(f"Cannot read {path}: {error.strerror or error}; check the path.")
