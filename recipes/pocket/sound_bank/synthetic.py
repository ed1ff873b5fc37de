"""Sounds made from formulas: sirens, alarms, wind, engines, footsteps, and backgrounds; mono float32 in about [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, lfilter, sosfilt

Samples = NDArray[np.float32]
Maker = Callable[[np.random.Generator, int], Samples]


def _time(seconds: float, sample_rate_hz: int) -> NDArray[np.float64]:
    return np.arange(int(seconds * sample_rate_hz)) / sample_rate_hz


def _tone(frequency_hz: NDArray[np.float64], sample_rate_hz: int, harmonics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of harmonics of a gliding fundamental; harmonics above the Nyquist rate are left out."""
    phase = 2 * np.pi * np.cumsum(frequency_hz) / sample_rate_hz
    total = np.zeros_like(phase)
    for index, strength in enumerate(harmonics, start=1):
        total += strength * np.sin(index * phase) * (index * frequency_hz < sample_rate_hz / 2)
    return total


def _band(noise: NDArray[np.float64], low_hz: float, high_hz: float, sample_rate_hz: int) -> NDArray[np.float64]:
    high_hz = min(high_hz, 0.49 * sample_rate_hz)
    result: NDArray[np.float64] = sosfilt(butter(2, [low_hz, high_hz], "bandpass", fs=sample_rate_hz, output="sos"), noise)
    return result


def coloured_noise(rng: np.random.Generator, count: int, exponent: float) -> NDArray[np.float64]:
    """Noise whose power falls as `frequency ** -exponent`: 0 white, 1 pink, 2 brown; unit variance."""
    spectrum = rng.normal(size=count // 2 + 1) + 1j * rng.normal(size=count // 2 + 1)
    frequency = np.maximum(np.arange(count // 2 + 1), 1.0)
    signal = np.fft.irfft(spectrum * frequency ** (-exponent / 2), n=count)
    return signal / max(float(signal.std()), 1e-9)


def _finish(signal: NDArray[np.float64]) -> Samples:
    peak = float(np.abs(signal).max(initial=1e-9))
    return (0.9 * signal / peak).astype(np.float32)


def _gusts(rng: np.random.Generator, count: int, sample_rate_hz: int, rate_hz: float) -> NDArray[np.float64]:
    """Draw a slow random envelope in [0, 1]."""
    knots = rng.random(max(int(count / sample_rate_hz * rate_hz) + 3, 4))
    result: NDArray[np.float64] = np.interp(np.linspace(0, len(knots) - 1, count), np.arange(len(knots)), knots)
    return result


def _strikes(
    rng: np.random.Generator, rate: int, seconds: float, gap_s: tuple[float, float], strike: Callable[[], NDArray[np.float64]]
) -> Samples:
    """Repeat `strike` at nearly regular intervals."""
    signal = np.zeros(int(seconds * rate))
    position, gap = 0, rng.uniform(*gap_s)
    while position < len(signal):
        hit = strike()[: len(signal) - position]
        signal[position : position + len(hit)] += hit * rng.uniform(0.7, 1.0)
        position += max(int(gap * rng.uniform(0.85, 1.15) * rate), 1)
    return _finish(signal)


def _burst(rng: np.random.Generator, rate: int, decay_s: float, low_hz: float, high_hz: float) -> NDArray[np.float64]:
    """Make a short band-limited noise burst with exponential decay."""
    t = _time(6 * decay_s, rate)
    return _band(rng.normal(size=len(t)), low_hz, high_hz, rate) * np.exp(-t / decay_s)


def siren(rng: np.random.Generator, rate: int) -> Samples:
    """Wail, yelp or two-tone siren."""
    t = _time(rng.uniform(4, 7), rate)
    low, high = rng.uniform(450, 750), rng.uniform(1000, 1700)
    kind = rng.integers(3)
    if kind == 2:  # European hi-lo
        low = rng.uniform(380, 520)
        frequency = np.where((t * rng.uniform(0.8, 1.2)) % 1.0 < 0.5, low, low * 1.33)
    else:
        speed = rng.uniform(0.15, 0.4) if kind == 0 else rng.uniform(2.0, 4.0)
        frequency = low + (high - low) * (0.5 - 0.5 * np.cos(2 * np.pi * speed * t))
    return _finish(_tone(frequency, rate, rng.uniform(0.2, 1.0) ** np.arange(8.0)))


def beeps(rng: np.random.Generator, rate: int, frequency_hz: float, on_s: float, off_s: float, count: int, pause_s: float) -> Samples:
    """Make groups of `count` tones with a pause between the groups."""
    t = _time(rng.uniform(3, 5), rate)
    period = count * (on_s + off_s) + pause_s
    inside = t % period
    gate = (inside < count * (on_s + off_s)) & (inside % (on_s + off_s) < on_s)
    smooth = lfilter(np.ones(96) / 96, 1, gate.astype(float))
    return _finish(_tone(np.full_like(t, frequency_hz), rate, rng.uniform(0.1, 0.9) ** np.arange(6.0)) * smooth)


def alarm_clock(rng: np.random.Generator, rate: int) -> Samples:
    """Digital alarm clock: groups of short beeps."""
    on = rng.uniform(0.05, 0.12)
    return beeps(rng, rate, rng.uniform(1800, 2800), on, on, int(rng.integers(2, 5)), rng.uniform(0.2, 0.6))


def smoke_alarm(rng: np.random.Generator, rate: int) -> Samples:
    """Smoke detector near 3 kHz."""
    return beeps(rng, rate, rng.uniform(2900, 3500), rng.uniform(0.3, 0.5), rng.uniform(0.1, 0.5), 3, rng.uniform(0.0, 1.2))


def beep(rng: np.random.Generator, rate: int) -> Samples:
    """One or two plain beeps."""
    length = rng.uniform(0.15, 0.6)
    signal = _tone(np.full(int(length * rate), rng.uniform(400, 2000)), rate, rng.uniform(0, 0.6) ** np.arange(5.0))
    return _finish(signal * np.minimum(1, np.minimum(_time(length, rate), length - _time(length, rate)) / 0.01)[: len(signal)])


def buzzer(rng: np.random.Generator, rate: int) -> Samples:
    """Harsh low buzzer."""
    t = _time(rng.uniform(0.6, 1.6), rate)
    return _finish(np.sign(_tone(np.full_like(t, rng.uniform(90, 220)), rate, np.ones(1))) * (0.8 + 0.2 * rng.normal(size=len(t))))


def car_horn(rng: np.random.Generator, rate: int) -> Samples:
    """Two-note car horn, one or several honks."""
    base, parts = rng.uniform(320, 480), []
    for _ in range(int(rng.integers(1, 4))):
        t = _time(rng.uniform(0.2, 1.2), rate)
        chord = _tone(np.full_like(t, base), rate, 0.8 ** np.arange(12.0)) + _tone(
            np.full_like(t, base * 1.26), rate, 0.8 ** np.arange(12.0)
        )
        parts += [
            np.tanh(chord) * np.minimum(1, (t[-1] - t) / 0.03) * np.minimum(1, t / 0.02),
            np.zeros(int(rng.uniform(0.08, 0.3) * rate)),
        ]
    return _finish(np.concatenate(parts))


def train_horn(rng: np.random.Generator, rate: int) -> Samples:
    """Locomotive or ship horn: a low chord with breath noise."""
    t = _time(rng.uniform(1.5, 3.5), rate)
    base = rng.uniform(110, 330)
    chord = np.sum([_tone(np.full_like(t, base * ratio), rate, 0.75 ** np.arange(14.0)) for ratio in (1.0, 1.19, 1.5, 1.78)], axis=0)
    envelope = np.minimum(1, t / 0.15) * np.minimum(1, (t[-1] - t) / 0.3)
    return _finish((chord + 0.3 * _band(rng.normal(size=len(t)), 200, 4000, rate)) * envelope)


def wind(rng: np.random.Generator, rate: int) -> Samples:
    """Wind: noise through a slowly wandering resonance."""
    count = int(rng.uniform(6, 10) * rate)
    body = _band(coloured_noise(rng, count, 1.0), 60, rng.uniform(300, 900), rate)
    howl_hz = rng.uniform(300, 900)
    howl = _band(rng.normal(size=count), howl_hz, howl_hz * 1.15, rate) * _gusts(rng, count, rate, 0.7) ** 2
    return _finish(body * (0.3 + _gusts(rng, count, rate, 0.8)) + rng.uniform(0.0, 1.5) * howl)


def thunder(rng: np.random.Generator, rate: int) -> Samples:
    """Make a crack and its long low rumble."""
    count = int(rng.uniform(3, 6) * rate)
    t = np.arange(count) / rate
    rumble = (
        _band(coloured_noise(rng, count, 1.5), 25, 220, rate) * np.exp(-t / rng.uniform(0.9, 2.0)) * (0.4 + _gusts(rng, count, rate, 4))
    )
    crack = _band(rng.normal(size=count), 200, 5000, rate) * np.exp(-t / rng.uniform(0.05, 0.25))
    return _finish(rumble / rumble.std() + rng.uniform(0, 1.5) * crack / crack.std() * 0.3)


def engine(rng: np.random.Generator, rate: int) -> Samples:
    """Idling or driving car or truck."""
    count = int(rng.uniform(5, 8) * rate)
    frequency = rng.uniform(22, 60) * (1 + 0.3 * rng.random() * _gusts(rng, count, rate, 0.5))
    firing = np.clip(_tone(frequency, rate, 0.85 ** np.arange(30.0)), -2, 2)
    noise = _band(coloured_noise(rng, count, 1.0), 60, 2500, rate)
    return _finish(firing / firing.std() + rng.uniform(0.3, 1.0) * noise / noise.std())


def motorcycle(rng: np.random.Generator, rate: int) -> Samples:
    """Revving motorcycle: a buzzing fundamental that rises and falls."""
    count = int(rng.uniform(4, 7) * rate)
    revs = _gusts(rng, count, rate, rng.uniform(0.6, 1.5))
    saw = _tone(rng.uniform(50, 90) * (1 + 1.8 * revs), rate, 0.92 ** np.arange(40.0))
    noise = _band(rng.normal(size=count), 300, 5000, rate)
    return _finish(np.tanh(saw / saw.std()) * (0.4 + revs) + 0.25 * noise / noise.std() * revs)


def vacuum(rng: np.random.Generator, rate: int) -> Samples:
    """Vacuum cleaner or hair dryer: broad air noise over a motor whine."""
    count = int(rng.uniform(5, 8) * rate)
    air = _band(rng.normal(size=count), 250, rng.uniform(5000, 9000), rate)
    whine = _tone(
        np.full(count, rng.uniform(180, 600)) * (1 + 0.01 * _gusts(rng, count, rate, 2)), rate, rng.uniform(0.5, 0.9) ** np.arange(10.0)
    )
    return _finish(air / air.std() + rng.uniform(0.2, 0.8) * whine / whine.std())


def drill(rng: np.random.Generator, rate: int) -> Samples:
    """Electric drill with load changes and hammering."""
    count = int(rng.uniform(3, 6) * rate)
    load = _gusts(rng, count, rate, 1.5)
    whine = _tone(rng.uniform(250, 500) * (0.7 + 0.6 * load), rate, 0.9 ** np.arange(20.0))
    grind = _band(rng.normal(size=count), 1000, 8000, rate) * (0.3 + load)
    hammer = 0.6 + 0.4 * np.sign(np.sin(2 * np.pi * rng.uniform(20, 45) * np.arange(count) / rate)) * rng.integers(2)
    return _finish((whine / whine.std() + 0.7 * grind / grind.std()) * hammer)


def footsteps(rng: np.random.Generator, rate: int) -> Samples:
    """Walk on a hard floor: heel and sole of each step."""
    low, high = rng.uniform(60, 200), rng.uniform(1200, 4000)

    def step() -> NDArray[np.float64]:
        heel = _burst(rng, rate, rng.uniform(0.01, 0.03), low, high)
        sole = 0.4 * _burst(rng, rate, 0.02, 300, high * 1.5)
        signal = np.zeros(int(0.2 * rate) + len(heel) + len(sole))
        signal[: len(heel)] += heel
        offset = int(rng.uniform(0.05, 0.1) * rate)
        signal[offset : offset + len(sole)] += sole
        return signal

    return _strikes(rng, rate, rng.uniform(3, 6), (0.35, 0.7), step)


def knocking(rng: np.random.Generator, rate: int) -> Samples:
    """Knuckles on a wooden door."""
    resonance = rng.uniform(120, 350)
    return _strikes(
        rng, rate, rng.uniform(0.7, 1.6), (0.14, 0.3), lambda: _burst(rng, rate, rng.uniform(0.015, 0.04), resonance, resonance * 4)
    )


def typing(rng: np.random.Generator, rate: int) -> Samples:
    """Keyboard clicks with uneven rhythm."""
    signal = np.zeros(int(rng.uniform(3, 6) * rate))
    position = 0
    while position < len(signal):
        click = _burst(rng, rate, rng.uniform(0.002, 0.008), rng.uniform(900, 2000), rng.uniform(4000, 9000))[: len(signal) - position]
        signal[position : position + len(click)] += click * rng.uniform(0.3, 1.0)
        position += int(rng.gamma(2.0, 0.06) * rate) + 200
    return _finish(signal)


def dripping(rng: np.random.Generator, rate: int) -> Samples:
    """Let drops fall into water: short rising sine blips."""

    def drop() -> NDArray[np.float64]:
        t = _time(0.12, rate)
        start = rng.uniform(600, 1800)
        return _tone(start * (1 + 3 * t), rate, np.ones(1)) * np.exp(-t / rng.uniform(0.012, 0.035))

    return _strikes(rng, rate, rng.uniform(3, 5), (0.25, 1.0), drop)


def crickets(rng: np.random.Generator, rate: int) -> Samples:
    """Mix a few crickets, each a pulsed high tone."""
    t = _time(rng.uniform(5, 8), rate)
    total = np.zeros_like(t)
    for _ in range(int(rng.integers(1, 5))):
        pulses = np.clip(np.sin(2 * np.pi * rng.uniform(18, 60) * t), 0, 1)
        chirps = (np.sin(2 * np.pi * rng.uniform(0.8, 3) * t + rng.uniform(0, 6)) > rng.uniform(-1.2, 0.2)).astype(float)
        total += rng.uniform(0.3, 1) * np.sin(2 * np.pi * rng.uniform(3200, 6500) * t) * pulses * chirps
    return _finish(total)


def bee(rng: np.random.Generator, rate: int) -> Samples:
    """Let an insect fly around."""
    count = int(rng.uniform(3, 6) * rate)
    frequency = rng.uniform(130, 500) * (1 + 0.15 * _gusts(rng, count, rate, 3))
    return _finish(_tone(frequency, rate, 0.8 ** np.arange(16.0)) * (0.15 + _gusts(rng, count, rate, 2.5)))


def heartbeat(rng: np.random.Generator, rate: int) -> Samples:
    """Lub-dub."""

    def beat() -> NDArray[np.float64]:
        signal = np.zeros(int(0.6 * rate))
        for offset, strength in ((0.0, 1.0), (rng.uniform(0.25, 0.32), 0.7)):
            thump = _burst(rng, rate, 0.04, 30, 120)
            begin = int(offset * rate)
            room = len(signal) - begin
            signal[begin : begin + len(thump)] += strength * thump[:room]
        return signal

    return _strikes(rng, rate, rng.uniform(4, 6), (0.7, 1.1), beat)


def hammering(rng: np.random.Generator, rate: int) -> Samples:
    """Hammer on metal or wood: a click with ringing modes."""
    modes = rng.uniform(400, 5000, size=5)

    def hit() -> NDArray[np.float64]:
        t = _time(0.25, rate)
        ring = np.zeros_like(t)
        for mode in modes:
            ring += np.sin(2 * np.pi * mode * t) * np.exp(-t / rng.uniform(0.01, 0.08))
        return ring / 5 + _burst(rng, rate, 0.042, 100, 6000)[: len(t)]

    return _strikes(rng, rate, rng.uniform(2, 4), (0.3, 0.8), hit)


def telephone(rng: np.random.Generator, rate: int) -> Samples:
    """Electronic or bell telephone ring."""
    t = _time(rng.uniform(1.5, 2.2), rate)
    low = rng.uniform(400, 1400)
    warble = np.where((t * rng.uniform(12, 26)) % 1.0 < 0.5, low, low * rng.uniform(1.15, 1.4))
    harmonics = rng.uniform(0.3, 0.9) ** np.arange(7.0)
    return _finish(_tone(warble, rate, harmonics) * np.minimum(1, (t[-1] - t) / 0.05))


def dialling(rng: np.random.Generator, rate: int) -> Samples:
    """Touch tones of a few digits."""
    parts = []
    for _ in range(int(rng.integers(3, 9))):
        t = _time(rng.uniform(0.08, 0.2), rate)
        row, column = rng.choice([697, 770, 852, 941]), rng.choice([1209, 1336, 1477])
        parts += [np.sin(2 * np.pi * row * t) + np.sin(2 * np.pi * column * t), np.zeros(int(rng.uniform(0.05, 0.15) * rate))]
    return _finish(np.concatenate(parts))


def laser(rng: np.random.Generator, rate: int) -> Samples:
    """Falling zap of an arcade game."""
    t = _time(rng.uniform(0.15, 0.5), rate)
    frequency = rng.uniform(1500, 4000) * np.exp(-t * rng.uniform(6, 16)) + 80
    return _finish(np.sign(_tone(frequency, rate, np.ones(1))) * np.exp(-t / 0.25))


MAKERS: dict[str, Maker] = {
    "alarm/siren": siren, "alarm/clock": alarm_clock, "alarm/smoke": smoke_alarm, "alarm/beep": beep, "alarm/buzzer": buzzer,
    "vehicle/horn": car_horn, "vehicle/train_horn": train_horn, "vehicle/engine": engine, "vehicle/motorcycle": motorcycle,
    "weather/wind": wind, "weather/thunder": thunder, "tool/vacuum": vacuum, "tool/drill": drill, "tool/hammer": hammering,
    "tool/typing": typing, "human/footsteps": footsteps, "human/heartbeat": heartbeat, "door/knock": knocking, "water/drip": dripping,
    "animal/crickets": crickets, "animal/insect": bee, "phone/ring": telephone, "phone/dial": dialling, "laser": laser,
}  # fmt: skip
"""Group of the bank -> maker of one variation."""


def background(rng: np.random.Generator, rate: int, seconds: float) -> Samples:
    """Make a room or outdoor background that answers no query: coloured noise, mains hum, ventilation, a far road."""
    count = int(seconds * rate)
    layers = [coloured_noise(rng, count, rng.uniform(0.7, 2.0))]
    if rng.random() < 0.5:
        hum_hz = rng.choice([50.0, 60.0]) * rng.integers(1, 4)
        layers.append(rng.uniform(0.1, 0.6) * _tone(np.full(count, hum_hz), rate, rng.uniform(0.2, 0.7) ** np.arange(6.0)))
    if rng.random() < 0.5:
        road = _band(coloured_noise(rng, count, 1.0), 40, rng.uniform(200, 700), rate)
        layers.append(rng.uniform(0.5, 2.0) * road / road.std() * (0.3 + _gusts(rng, count, rate, 0.1)))
    if rng.random() < 0.4:
        hiss = _band(rng.normal(size=count), rng.uniform(300, 2000), rng.uniform(4000, 11000), rate)
        layers.append(rng.uniform(0.05, 0.5) * hiss / hiss.std())
    return _finish(np.sum(layers, axis=0))
