"""Figures for a model's card: `python -m training.figures --checkpoint FILE --data DIR --scenes a,b` prints Markdown.

Whole scenes, every degradation: PSNR (MSE over all elements), SSIM and SAM of input and output, over the lost bands
where bands were lost. Means over scenes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from calibration.degradations import DEGRADATIONS, lost_bands
from calibration.quality import quality
from export.networks import load_checkpoint
from export.networks.damp.config import SIZE_MULTIPLE
from export.torch_engine import TorchEngine
from runtime.errors import InputError
from runtime.restore import restore_cube
from training.data import load_scenes

Row = tuple[float, float, float, float, float, float]


def figures(checkpoint: str, data: Path, names: tuple[str, ...], seed: int = 0) -> dict[str, Row]:
    """{task: (PSNR in, PSNR out, SSIM in, SSIM out, SAM in, SAM out)}, means over the named scenes."""
    net = load_checkpoint(checkpoint)
    scenes = load_scenes(data, net.facts.scale or 1.0)
    missing = [name for name in names if name not in scenes]
    if missing:
        raise InputError("no such scene", file=data, value=missing[0], remedy=f"there are {', '.join(scenes)}")
    table = {}
    for index, task in enumerate(track(DEGRADATIONS, "restoring", console=Console(stderr=True))):
        rows = []
        for place, name in enumerate(names):
            truth = scenes[name]
            degraded = DEGRADATIONS[task](truth, np.random.default_rng([seed, index, place]))
            size = tuple(-(-n // SIZE_MULTIPLE) * SIZE_MULTIPLE for n in truth.shape[1:])
            restored = restore_cube(
                degraded,
                TorchEngine(net, *size).infer,
                bands=net.config.bands,
                frame=size,
                overlap=0,
                metric_set=net.config.metric_set,
            )
            lost = lost_bands(degraded)
            bands = lost if lost.any() else None
            before, after = quality(degraded, truth, bands), quality(np.asarray(restored.cube), truth, bands)
            rows.append((before.psnr, after.psnr, before.ssim, after.ssim, before.sam, after.sam))
        table[task] = tuple(float(v) for v in np.mean(rows, axis=0))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="a file, or the name of a packaged model")
    parser.add_argument("--data", type=Path, required=True, help="folder of .npz scenes")
    parser.add_argument("--scenes", required=True, help="comma list of scenes that were not trained on")
    arguments = parser.parse_args()
    table = figures(arguments.checkpoint, arguments.data, tuple(arguments.scenes.split(",")))
    print("| task | PSNR in | PSNR out | gain, dB | SSIM in | SSIM out | SAM in | SAM out |")
    print("|---|---|---|---|---|---|---|---|")
    for task, (a, b, c, d, e, f) in table.items():
        print(f"| {task} | {a:.2f} | {b:.2f} | {b - a:+.2f} | {c:.3f} | {d:.3f} | {e:.2f} | {f:.2f} |")


if __name__ == "__main__":
    main()
