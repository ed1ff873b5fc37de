r"""The proof that the open-vocabulary head holds in joint spaces it never saw: each space is left out once, over several seeds.

    python -m recipes.open.proof --train build/scenes/train320/manifest.jsonl --scenes build/scenes --output runs/open [--seeds 0 1 2]

Per space, on the scenes of all kinds in unseen words: how well cosines tell clips inside a window from others (AUC); the best threshold on
them, *tuned on these very scenes*; the head trained on the other spaces alone; the head trained on this space alone, which bounds it. Runs
that are done are skipped, interrupted ones resumed. Wants features of every space, see `recipes.open.run`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch.nn.functional import normalize

from benchmarks.hearing import Curves, best_threshold, thresholded
from qamdetr.config import DataConfig, ModelConfig, load_config
from qamdetr.data.dataset import clip_coverage, windows_in_clips
from qamdetr.data.manifest import QueryEntry, read_manifest
from qamdetr.evaluation.metrics import evaluate
from qamdetr.features.store import FeatureStore
from recipes.ladder import RESULTS_FILE, Variant, run_plan
from recipes.open.spaces import SPACES

NAMES = ("pocket", *SPACES)
SMALL = ("model.dim=64", "model.ffn_dim=256", "data.max_clips=300", "train.epochs=3")
"""What makes a run a few minutes long; the shipped model is the full size."""


def plan(names: Sequence[str] = NAMES) -> list[Variant]:
    """List the runs: without each space, and of each alone."""
    runs = []
    for name in names:
        others = [other for other in NAMES if other != name]
        here = {"head": (f"data.combo=open:{name}", "data.more_spaces=[]")}
        without = (f"data.combo=open:{others[0]}", f"data.more_spaces=[{', '.join(f'open:{each}' for each in others[1:])}]")
        runs += [Variant(f"without_{name}", f"head, {name} left out", "open", without, here)]
        runs += [Variant(f"only_{name}", f"head, {name} alone", "open", (f"data.combo=open:{name}", "data.space_bend=0"), here)]
    return runs


def curves_of(name: str, entries: Sequence[QueryEntry], feature_dir: str) -> Curves:
    """Return the cosine of each clip with each query in a space."""
    model = load_config("open").model
    store = FeatureStore(model, DataConfig(combo=f"open:{name}", feature_dir=feature_dir))
    clips = {vid: normalize(store.audio(vid)["open"], dim=-1) for vid in {entry.vid for entry in entries}}
    curves = {}
    for entry in entries:
        pooled = next(iter(store.text(entry.query, entry.qid).values())).pooled
        assert pooled is not None
        curves[entry.qid] = (clips[entry.vid] @ normalize(pooled, dim=-1)).numpy()
    return curves


def area_under_curve(entries: Sequence[QueryEntry], curves: Curves, model: ModelConfig) -> float:
    """Chance that a clip inside a window of its query outscores one outside, of the same recording; mean over queries with windows."""
    areas = []
    for entry in entries:
        if entry.relevant_windows:
            curve = curves[entry.qid]
            inside = clip_coverage(windows_in_clips(entry.relevant_windows, model.clip_seconds), len(curve)).numpy() > 0.5
            if inside.any() and not inside.all():
                areas.append(stats.mannwhitneyu(curve[inside], curve[~inside]).statistic / (inside.sum() * (~inside).sum()))
    return float(np.mean(areas))


def by_threshold(name: str, manifest: Path, feature_dir: str) -> dict[str, float]:
    """Score the best threshold on cosines, tuned on these very scenes: absolute, or a share of the way from median to maximum."""
    entries, model = read_manifest(manifest), load_config("open").model
    curves = curves_of(name, entries, feature_dir)
    found: list[Mapping[str, Any]] = []
    for relative in (False, True):
        threshold = best_threshold(entries, curves, relative=relative)
        found.append(evaluate(thresholded(entries, curves, threshold, relative=relative), entries))
    best = max(found, key=lambda row: row["R1@0.7"])
    return {"AUC": area_under_curve(entries, curves, model), **{key: float(best[key]) for key in ("R1@0.5", "R1@0.7", "mAP")}}


def report(output: Path, thresholds: Mapping[str, Mapping[str, float]], key: str = "R1@0.7") -> str:
    """Make the table of what is there: means over seeds, and of the difference from threshold to head the share of that to the bound."""
    lines = [
        f"| space | AUC | threshold, {key} | head, untuned | head, trained here | gain | of the way |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        if name not in thresholds:
            continue
        base = thresholds[name][key]
        heads = {}
        for kind in ("without", "only"):
            files = sorted(output.glob(f"{kind}_{name}-s*/{RESULTS_FILE}"))
            heads[kind] = [json.loads(file.read_text())["readings"]["head"]["test"][key] for file in files]
        if not heads["without"]:
            continue
        head, bound = (float(np.mean(heads[kind])) if heads[kind] else float("nan") for kind in ("without", "only"))
        told = ["; ".join(f"{value:.1f}" for value in heads[kind]) or "-" for kind in ("without", "only")]
        lines.append(f"| {name} | {thresholds[name]['AUC']:.3f} | {base:.1f} | {told[0]} | {told[1]} | {head - base:+.1f} | "
                     f"{100 * (head - base) / (bound - base):.0f} % |")  # fmt: skip
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Leave each joint space out once.")
    parser.add_argument("--train", required=True, help="manifest of training scenes")
    parser.add_argument("--scenes", type=Path, default=Path("build/scenes"))
    parser.add_argument("--features", default="build/features")
    parser.add_argument("--output", type=Path, default=Path("runs/open"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    test, kept = arguments.scenes / "fifty" / "manifest.jsonl", arguments.output / "thresholds.json"
    arguments.output.mkdir(parents=True, exist_ok=True)
    thresholds: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    for name in arguments.only:
        if name not in thresholds:
            thresholds[name] = by_threshold(name, test, arguments.features)
            kept.write_text(json.dumps(thresholds, indent=1))
    where = (f"data.train_manifest={arguments.train}", f"data.val_manifest={arguments.scenes}/val/manifest.jsonl")
    run_plan(plan(arguments.only), arguments.seeds, arguments.output, test, (*SMALL, *where, f"data.feature_dir={arguments.features}"))
    sys.stdout.write(report(arguments.output, thresholds) + "\n")


if __name__ == "__main__":
    main()
