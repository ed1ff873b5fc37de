"""Files as people and devices write them, made in tests: any codec in any container, with late or lost sound, pictures and tracks."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 16_000
BURSTS = (0.5, 1.3, 2.1, 3.4)
"""Where `bursts` has its sounds, in seconds."""

SECONDS = 4.0


def bursts(rate: int = RATE) -> np.ndarray:
    """Short tones in quiet noise, at uneven distances, so that whatever is lost or shifted shows."""
    time = np.arange(round(SECONDS * rate)) / rate
    wave = 1e-3 * np.random.default_rng(0).standard_normal(len(time))
    for begin in BURSTS:
        wave += 0.5 * np.sin(2 * np.pi * 1000 * time) * ((time >= begin) & (time < begin + 0.2))
    return wave.astype(np.float32)


def heard(samples: np.ndarray, rate: int) -> list[float]:
    """Where tones begin in mono samples, in seconds."""
    step = rate // 100
    loud = np.abs(samples[: len(samples) // step * step]).reshape(-1, step).max(axis=1) > 0.15
    begins = np.flatnonzero(np.diff(loud.astype(int), prepend=0) > 0) / 100
    return [float(begin) for begin, before in zip(begins, [-1.0, *begins[:-1]], strict=True) if begin - before > 0.25]


def encode(path: Path, *tracks: np.ndarray, codec: str, kind: str | None = None, rate: int = RATE, late: float = 0.0,
           picture: float = 0.0, lost: tuple[float, float] = (0.0, 0.0), **options: str) -> Path:  # fmt: skip
    """Write tracks `(n,)` or `(n, channels)`, the sound `late` seconds after the picture, packets within `lost` left out."""
    with av.open(str(path), "w", format=kind, options=options) as container:
        video = container.add_stream("mpeg4", rate=10) if picture else None
        streams = [
            container.add_stream(codec, rate=rate, layout="mono" if track.ndim == 1 else f"{track.shape[1]}c", bit_rate=64_000)
            for track in tracks
        ]
        if video:
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
            for number in range(round(picture * 10)):
                image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number % 255, np.uint8), format="rgb24")
                image.pts, image.time_base = number, Fraction(1, 10)
                container.mux(video.encode(image))
            container.mux(video.encode())
        for stream, track in zip(streams, tracks, strict=True):
            resampler = av.AudioResampler(stream.codec_context.format, stream.codec_context.layout, rate)
            planar = np.ascontiguousarray(np.atleast_2d(track.T), dtype=np.float32)
            packets = []
            for begin in range(0, planar.shape[1], 1024):
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(planar[:, begin : begin + 1024]), "fltp", stream.codec_context.layout.name
                )
                frame.sample_rate, frame.pts, frame.time_base = rate, begin + round(late * rate), Fraction(1, rate)
                packets += [packet for part in resampler.resample(frame) for packet in stream.encode(part)]
            packets += [packet for part in resampler.resample(None) for packet in stream.encode(part)] + stream.encode()
            for packet in packets:
                if packet.pts is None or not lost[0] <= float(packet.pts * packet.time_base) - late < lost[1]:
                    container.mux(packet)
    return path
