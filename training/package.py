"""Package what a run of a DAMP wrote: `python -m training.package RUN/damp-tiny.safetensors`.

Weights go among the packaged models, packed and in 16 bits, with all that is told of them; then they are evaluated by
their name, and `training.card` writes their card.
"""

import argparse
from pathlib import Path

from export.networks import PACKAGED, SUFFIX, load_checkpoint, save_checkpoint
from training.console import console, told
from training.run import damp_of


def package(file: Path, models: Path = PACKAGED) -> Path:
    """Write the weights of `file` to `models`; the path there. Raises CheckpointError, ConfigError for no DAMP's."""
    net = load_checkpoint(file)
    damp_of(net)
    facts = net.facts
    made = models / f"{file.name.partition('.')[0].removesuffix('-best')}{SUFFIX}"
    return save_checkpoint(
        net, made, scale=facts.scale, wavelengths=facts.wavelengths, about=facts.about, half=True, fills=facts.fills
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.package", description=__doc__)
    parser.add_argument("file", type=Path, help="the checkpoint of a run")
    with told():
        made = package(parser.parse_args().file)
        console.print(f"wrote {made}, {made.stat().st_size / 2**20:.1f} MiB", markup=False)


if __name__ == "__main__":
    main()
