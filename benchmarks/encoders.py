"""Time the pretrained encoders and their front ends, and measure the memory they take.

    python -m benchmarks.encoders [--encoders laion_clap …] [--clips 8] [--dtype bfloat16] [--device cuda]

Networks of full size with random weights are saved in a temporary folder (about 4 GB) as the hub has them, and opened as downloaded ones
are. Each encoder is measured in a process of its own, whose peak memory is then its own. Per encoder: a recording from samples to
features, the bare network on inputs that are ready, and the front end alone (resampling is not in it); beside LAION-CLAP's, the front end
of Transformers. All runs of an encoder take turns in one process, so that ratios hold on a busy machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._timing import Target, median_seconds, print_targets, write_json
from qamdetr.features.base import DTYPES, open_streams

AUDIO = ("laion_clap", "ms_clap", "wavlm_base", "wavlm_large")  # wavlm_base_plus is wavlm_base in size
TEXT = ("laion_clap", "ms_clap", "roberta")
TESTS = Path(__file__).resolve().parents[1] / "tests"
QUERY = "a dog barks twice in the distance while rain falls"
QUERIES_PER_RUN = 8
FRONT_END_LIMIT = 0.10
END_TO_END_LIMIT = 1.1

END_TO_END, NETWORK, FRONT_END, STOCK = "samples to features", "network alone", "front end alone", "front end of Transformers"


def save_full_size(name: str, folder: Path) -> None:
    """Save a network of the published size, with random weights, as the hub has it."""
    hf: Any = importlib.import_module("transformers")  # its types do not know these calls
    hf.utils.logging.disable_progress_bar()
    # The tests know how to save tokenisers, and the names that the packages' own files have.
    sys.path.insert(0, str(TESTS))
    tiny: Any = importlib.import_module("hub_models")
    torch.manual_seed(0)
    if name == "laion_clap":
        hf.ClapModel(hf.ClapConfig()).save_pretrained(folder)
        hf.ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc").save_pretrained(folder)
        tiny.save_tiny_roberta_tokenizer(folder)
    elif name == "ms_clap":
        audio, text = hf.ClapAudioModel(hf.ClapAudioConfig()), hf.GPT2Model(hf.GPT2Config())
        state = {
            f"audio_encoder.base.htsat.{key}": value for key, value in tiny.original_htsat_names(audio.audio_encoder.state_dict()).items()
        }
        state |= {f"caption_encoder.base.{key}": value for key, value in text.state_dict().items()}
        tiny.save_tiny_gpt2_tokenizer(folder)
        torch.save({"model": state}, folder / "CLAP_weights_2023.pth")
    elif name == "roberta":
        config = hf.RobertaConfig(max_position_embeddings=514, type_vocab_size=1)
        hf.RobertaModel(config).save_pretrained(folder)
        tiny.save_tiny_roberta_tokenizer(folder)
    else:
        large = name == "wavlm_large"
        sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096} if large else {}
        norms = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if large else {}
        hf.WavLMModel(hf.WavLMConfig(**sizes, **norms)).save_pretrained(folder)
        hf.Wav2Vec2FeatureExtractor(do_normalize=large).save_pretrained(folder)


def audio_runs(name: str, encoder: Any, samples: np.ndarray, arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:  # noqa: ANN401
    """Return the runs of one audio encoder over the same samples."""
    sys.path.insert(0, str(TESTS))
    batch = encoder.options.batch_clips
    windows = [*torch.split(torch.from_numpy(samples).reshape(-1, encoder.rate_hz).to(arguments.device), batch)]
    runs: dict[str, Callable[[], object]] = {END_TO_END: lambda: importlib.import_module("hub_models").encode_samples(encoder, samples)}
    if name.startswith("wavlm"):
        ready = [part.to(DTYPES[arguments.dtype]) for part in windows]
        runs[NETWORK] = lambda: [encoder.model(part).last_hidden_state for part in ready]
        return runs
    front_end = encoder.log_mels
    ready = [front_end(part) for part in windows]
    runs[NETWORK] = lambda: [encoder.htsat(part) for part in ready]
    runs[FRONT_END] = lambda: [front_end(part) for part in windows]
    if name == "laion_clap":
        from transformers import ClapFeatureExtractor

        stock = ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
        clips = list(samples.reshape(-1, encoder.rate_hz))
        runs[STOCK] = lambda: stock(clips, sampling_rate=encoder.rate_hz, return_tensors="pt")
    return runs


def waiting(run: Callable[[], object], device: str) -> Callable[[], None]:
    """Return the same run without gradients, ended when a GPU has ended it."""

    def wait() -> None:
        with torch.inference_mode():
            run()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return wait


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Open one encoder and time it."""
    torch.set_num_threads(arguments.threads)
    imported_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    streams = ((name,) if name in AUDIO else (), (name,) if name in TEXT else ())
    started = time.perf_counter()
    opened = open_streams(*streams, name=name, models={name: str(folder)}, dtype=arguments.dtype, device=arguments.device)
    result: dict[str, Any] = {"encoder": name, "open_seconds": time.perf_counter() - started}
    repeats = {"repeats": arguments.repeats, "warm_ups": 1}
    if name in TEXT:
        text = opened.text[name]
        run = waiting(lambda: [text.encode_text(QUERY) for _ in range(QUERIES_PER_RUN)], arguments.device)
        result["seconds_per_query"] = median_seconds({"queries": run}, **repeats)["queries"] / QUERIES_PER_RUN
    if name in AUDIO:
        encoder = opened.audio[name]
        rng = np.random.default_rng(0)
        samples = (0.1 * rng.standard_normal(arguments.clips * encoder.rate_hz)).astype(np.float32)
        with torch.inference_mode():
            runs = {key: waiting(run, arguments.device) for key, run in audio_runs(name, encoder, samples, arguments).items()}
        medians = median_seconds(runs, **repeats)
        result["seconds_per_clip"] = {key: seconds / arguments.clips for key, seconds in medians.items()}
        result["real_time_factor"] = arguments.clips / medians[END_TO_END]
        result["end_to_end_over_network"] = medians[END_TO_END] / medians[NETWORK]
        result["share_of_network"] = {key: medians[key] / medians[NETWORK] for key in (FRONT_END, STOCK) if key in medians}
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result["imports_mib"] = imported_mib
    if arguments.device.startswith("cuda"):
        result["peak_gpu_mib"] = torch.cuda.max_memory_allocated(arguments.device) / 2**20
    return result


def apart(step: str, name: str, folder: str) -> str:
    """Do one step in a process of its own, with the options of this one; returns the last line that it printed.

    Saving goes apart too: a process begins with its parent's peak memory.
    """
    command = [sys.executable, "-m", "benchmarks.encoders", *sys.argv[1:], step, name, folder]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.rpartition("\n")[2]


def print_row(result: dict[str, Any]) -> None:
    name, memory = result["encoder"], result.get("peak_gpu_mib", result["peak_mib"])
    print(f"{name}: opens in {result['open_seconds']:.1f} s, peak memory {memory:.0f} MiB")
    for key, seconds in result.get("seconds_per_clip", {}).items():
        share = result["share_of_network"].get(key)
        print(
            f"  {key:<28}{1000 * seconds:9.1f} ms per second of audio" + (f", {100 * share:5.1f} % of the network's time" if share else "")
        )
    if "real_time_factor" in result:
        print(f"  {result['real_time_factor']:.1f} times real time; {result['end_to_end_over_network']:.2f} times the bare network's time")
    if "seconds_per_query" in result:
        print(f"  {'query to features':<28}{1000 * result['seconds_per_query']:9.1f} ms per query")


def main() -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", choices=[*AUDIO, "roberta"], default=[*AUDIO, "roberta"])
    parser.add_argument("--clips", type=int, default=8, help="seconds of audio in each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/encoders.json"))
    for step in ("--save", "--measure"):
        parser.add_argument(step, nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save:
        save_full_size(arguments.save[0], Path(arguments.save[1]))
        return
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]), arguments)), end="")
        return
    print(
        f"{arguments.dtype} on {arguments.device}, {arguments.threads} threads, medians of {arguments.repeats} runs of {arguments.clips} s"
    )
    rows = []
    for name in arguments.encoders:
        with tempfile.TemporaryDirectory() as folder:
            apart("--save", name, folder)
            rows.append(json.loads(apart("--measure", name, folder)))
        print_row(rows[-1])
    shares = {row["encoder"]: row["share_of_network"][FRONT_END] for row in rows if row.get("share_of_network")}
    for name, share in shares.items():
        print(f"front end of {name}: {100 * share:.1f} % of the network's time, limit {100 * FRONT_END_LIMIT:.0f} %")
    targets = print_targets(
        [
            Target(f"{row['encoder']}: samples to features over the network", row["end_to_end_over_network"], END_TO_END_LIMIT, "x")
            for row in rows
            if "end_to_end_over_network" in row
        ]
    )
    settings = {key: getattr(arguments, key) for key in ("clips", "repeats", "threads", "dtype", "device")}
    machine = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    write_json(arguments.output, {**settings, **machine, "front_end_limit": FRONT_END_LIMIT, "rows": rows, "targets": targets})


if __name__ == "__main__":
    main()
