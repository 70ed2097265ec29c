"""Judge a network for photographs: `python -m training.rgb.judge --recipe FILE --run RUN --data BSDS-TEST`.

A restoring network is measured on every task with every prompt: the right one, and all that are wrong. An extractor is
asked how well its embeddings tell kinds of damage apart (`--seen` names the photographs that the answer is learned
from). Tables go to standard output, figures to judged.json beside the run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from calibration.quality import psnr, ssim
from export.networks import Network, load_checkpoint
from export.networks.dfpir import Dfpir
from runtime.arrays import Float32
from runtime.errors import InputError
from training.console import console, told
from training.judged import keep
from training.rgb.dpmambair import read_extractor
from training.rgb.draws import Held, held_pictures, load_pictures
from training.rgb.lesson import one
from training.rgb.recipe import PhotographRecipe, load_recipe

Prompting = Mapping[str, Callable[[Tensor], Tensor]]
"""{name: what makes the prompt of a frame [1, 3, H, W]}."""
HEAD_WIDTH, HEAD_STEPS, HEAD_RATE = 64, 1000, 1e-3
INPUT = "input"


def prompting(net: Network) -> Prompting:
    """Every prompt of a DFPIR; of a DPMambaIR its embedding, and zeros in its place."""
    module = net.module
    if isinstance(module, Dfpir):
        with torch.no_grad():
            made = {name: module.perturbation(code.tensor) for name, code in module.prompts.items()}
        return {name: lambda _, prompt=prompt: prompt for name, prompt in made.items()}
    return {"embedding": module.extractor, "zeros": lambda frame: torch.zeros_like(module.extractor(frame))}


@torch.no_grad()
def restoration(net: Network, held: Sequence[Held]) -> dict[str, dict[str, dict[str, float]]]:
    """{task: {`input` or a prompt: {psnr, ssim}}}, means over the photographs."""
    figures: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for each in track(held, "restoring", console=console, transient=True):
        frame = one(each.bad)
        made: dict[str, Float32] = {INPUT: each.bad}
        made |= {name: net(frame, prompt(frame))[0].numpy() for name, prompt in prompting(net).items()}
        for name, picture in made.items():
            pair = psnr(picture, each.clean), ssim(picture, each.clean)
            figures.setdefault(each.task, {}).setdefault(name, []).append(pair)
    return {
        task: {name: dict(zip(("psnr", "ssim"), map(float, np.mean(p, axis=0)), strict=True)) for name, p in by.items()}
        for task, by in figures.items()
    }


def separability(extractor: nn.Module, seen: Sequence[Held], unseen: Sequence[Held], seed: int = 0) -> dict[str, Any]:
    """Shares of unseen pictures whose kind is told: by the nearest mean of the seen ones, and by a small head."""
    kinds = list(dict.fromkeys(each.task for each in seen))
    with torch.no_grad():
        (x, y), (new, true) = (
            (torch.cat([extractor(one(e.bad)) for e in part]), torch.tensor([kinds.index(e.task) for e in part]))
            for part in (seen, unseen)
        )
    x, new = ((t - x.mean(0)) / (x.std(0) + 1e-6) for t in (x, new))
    means = torch.stack([x[y == kind].mean(0) for kind in range(len(kinds))])
    nearest = torch.cdist(new, means).argmin(1)
    torch.manual_seed(seed)
    head = nn.Sequential(nn.Linear(x.shape[1], HEAD_WIDTH), nn.GELU(), nn.Linear(HEAD_WIDTH, len(kinds)))
    optimiser = torch.optim.AdamW(head.parameters(), HEAD_RATE)
    for _ in range(HEAD_STEPS):
        optimiser.zero_grad()
        F.cross_entropy(head(x), y).backward()
        optimiser.step()
    answered = head(new).argmax(1)
    confusion = torch.zeros(len(kinds), len(kinds), dtype=torch.long)
    confusion.index_put_((true, answered), torch.ones_like(true), accumulate=True)
    return {
        "kinds": kinds,
        "nearest mean": float((nearest == true).float().mean()),
        "head": float((answered == true).float().mean()),
        "confusion of the head": confusion.tolist(),
    }


def restoration_table(figures: Mapping[str, Mapping[str, Mapping[str, float]]], own: Mapping[str, str]) -> str:
    """PSNR in dB, and SSIM with the right prompt; `own` is {task: its prompt}. Last: the cheapest mistake."""
    names = list(next(iter(figures.values())))
    lines = ["| task | " + " | ".join(names) + " | gain | SSIM in | SSIM | nearest wrong prompt costs |"]
    lines.append("|---" * (len(names) + 5) + "|")
    for task, row in figures.items():
        right, given = row[own[task]], row[INPUT]
        wrong = [right["psnr"] - row[name]["psnr"] for name in names if name not in (INPUT, own[task])]
        cells = [f"**{row[n]['psnr']:.2f}**" if n == own[task] else f"{row[n]['psnr']:.2f}" for n in names]
        lines.append(
            f"| {task} | {' | '.join(cells)} | {right['psnr'] - given['psnr']:+.2f} | {given['ssim']:.3f} | "
            f"{right['ssim']:.3f} | {min(wrong):+.2f} |"
        )
    return "\n".join(lines)


def owned(recipe: PhotographRecipe, tasks: Iterable[str]) -> dict[str, str]:
    """{task: its prompt}."""
    return {t: n for n, t in recipe.prompts.tasks.items()} if recipe.prompts else dict.fromkeys(tasks, "embedding")


def separability_table(found: Mapping[str, Any]) -> str:
    """Shares, and the head's answers: rows are true."""
    kinds = found["kinds"]
    lines = [f"nearest mean {found['nearest mean']:.1%}, head {found['head']:.1%} of {len(kinds)} kinds", ""]
    lines += [f"| true, told | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    rows = zip(kinds, found["confusion of the head"], strict=True)
    return "\n".join([*lines, *(f"| {kind} | {' | '.join(map(str, row))} |" for kind, row in rows)])


def held_of(recipe: PhotographRecipe, folder: Path, count: int, size: int) -> tuple[Held, ...]:
    """The middle of the first `count` photographs of a folder, under every task."""
    pictures = load_pictures(folder, size)
    if not pictures:
        raise InputError(
            "no photograph is as large", file=folder, key="--size", value=size, remedy="give a smaller one"
        )
    return held_pictures(recipe, dict(list(pictures.items())[:count]), size)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.rgb.judge", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="its folder")
    parser.add_argument("--data", type=Path, required=True, help="photographs that were never trained on")
    parser.add_argument("--seen", type=Path, help="those of the training, for an extractor")
    parser.add_argument("--pictures", type=int, default=50, help="at most so many of a folder [50]")
    parser.add_argument("--size", type=int, default=256, help="lines and samples of their middle [256]")
    arguments = parser.parse_args()
    with told():
        recipe = load_recipe(arguments.recipe)
        file = arguments.run / f"{recipe.name}.safetensors"
        held = held_of(recipe, arguments.data, arguments.pictures, arguments.size)
        if recipe.architecture == "dpmambair-extractor":
            if arguments.seen is None:
                raise InputError("is needed for an extractor", key="--seen", remedy="give the training's photographs")
            seen = held_of(recipe, arguments.seen, 2 * arguments.pictures, arguments.size)
            found: dict[str, Any] = separability(read_extractor(file), seen, held)
            print(separability_table(found))
        else:
            net = load_checkpoint(file)
            found = restoration(net, held)
            print(net.facts.about, restoration_table(found, owned(recipe, found)), sep="\n\n")
        pictures = len(held) // len(recipe.tasks)
        keep(file, {"pictures": pictures, "size": arguments.size, "figures": found})


if __name__ == "__main__":
    main()
