"""The bank: neutral sentences that a query is compared with, in a joint space whose cosines have no scale of their own (DESIGN 4b)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from qamdetr.config import CONFIG_DIR
from qamdetr.errors import CheckpointError
from qamdetr.files import cache_folder, write_whole

if TYPE_CHECKING:
    from qamdetr.features.base import TextStream


SHARPNESS = 0.5  # deviations by which a sentence counts e-fold in words for a sound


@functools.cache
def bank_sentences() -> tuple[str, ...]:
    """Return the sentences: the names of AudioSet's classes, and what recordings are said to hold."""
    return tuple((CONFIG_DIR / "bank.txt").read_text(encoding="utf-8").splitlines())


def encoded_bank(encoder: TextStream) -> Tensor:
    """Return `(sentences, dim)` unit vectors in an encoder's joint space; encoded once, then kept in the user's cache folder.

    Raises:
        CheckpointError: The encoder has no vectors of whole sentences, or some that are not finite.
    """
    sentences = bank_sentences()
    version = hashlib.sha256("\n".join((encoder.fingerprint, *sentences)).encode()).hexdigest()[:16]
    path = cache_folder("bank") / f"{encoder.name}-{version}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or cut off by a full disk
        return torch.from_numpy(np.load(path, allow_pickle=False))
    vectors = [encoder.encode_text(sentence).pooled for sentence in sentences]
    whole = [vector for vector in vectors if vector is not None and bool(torch.isfinite(vector).all())]
    if len(whole) < len(sentences):
        what = f"Of {len(sentences)} sentences, {len(sentences) - len(whole)} have no finite vector in the joint space of {encoder.name}"
        raise CheckpointError(what, "choose another encoder, or other weights of it")
    bank = torch.stack(whole)
    with contextlib.suppress(OSError):  # costs the next start some seconds
        packed = io.BytesIO()
        np.save(packed, bank.numpy())
        write_whole(path, packed.getvalue())
    return bank


def likest(vector: Tensor, bank: Tensor) -> tuple[str, Tensor]:
    """Return the sentence that lies nearest to a vector `(dim,)` of a sound, and the mean of all, the more like it the more, `(dim,)`.

    Vectors of sounds lie apart from those of words; a network that reads words is lost with one.
    """
    cosines = normalize(bank, dim=-1) @ normalize(vector.float(), dim=-1)
    near = ((cosines - cosines.mean()) / (SHARPNESS * cosines.std())).softmax(dim=0)
    return bank_sentences()[int(cosines.argmax())], normalize(near @ bank, dim=-1)
