"""Bundles that `tests/flight` flies: `python -m tests.flight_bundles OUT` builds them, on the ground.

Every packaged model on small frames, one of them in OpenVINO and in INT8, the two of seeded weights that
`tests/runtime` asks for, and one that is signed. The tests themselves need none of what builds them:
`FLIGHT_BUNDLES=OUT python -m pytest tests/flight`. What is whole in OUT stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from shutil import copytree
from typing import Any

from runtime.bundle_files import sign_bundle
from runtime.manifest import MANIFEST
from tests.contracts.signed import write_keys

WORKERS = 2
TILED = {"input.frame": "64x64", "input.overlap": 16}
CODED = {"input.frame": "64x118", "input.overlap": 0}
PACKAGED: Mapping[str, Mapping[str, Any]] = {
    "damp-base": TILED, "damp-small": TILED, "damp-nano": TILED, "damp-tiny": TILED, "damp-base-rs": TILED,
    "dfpir-tiny": TILED, "dpmambair-tiny": TILED, "mst-tiny": CODED, "mst-tiny-sdp": CODED,
}  # fmt: skip
INT8 = {**TILED, "target": "intel", "precision": "int8", "calibration.dir": "simulated"}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "damp-nano-int8": {"model.checkpoint": "damp-nano", **INT8},
    "damp-nano-intel": {"model.checkpoint": "damp-nano", "target": "intel", **TILED},
    **{name: {"model.checkpoint": name, **flags} for name, flags in PACKAGED.items()},
}
"""Name of a bundle -> what is asked of `deploy build`; what takes longest first."""


def write_tiny(path: Path) -> Path:
    """A `.safetensors` with seeded weights: 31 bands of 400 to 700 nm, 8 channels, 4 experts, scale 65535."""
    import torch

    from export.networks import network_of, save_checkpoint
    from export.networks.damp import Damp, DampConfig

    config = DampConfig(
        dim=8,
        heads=(2, 2, 2, 2),
        encoder_blocks=(1, 0, 0, 1),
        decoder_blocks=(1, 1, 0),
        refinement_blocks=0,
        expansion=1,
        embedding=16,
        gate="concat",
        metric_set="paper6",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Damp(config).eval()
        torch.nn.init.normal_(net.output.weight, 0, 0.02)
    made = network_of(net)
    return save_checkpoint(made, path, scale=65535, wavelengths=tuple(range(400, 701, 10)), about="seeded weights")


def build_bundle(out: Path, flags: Mapping[str, Any], **asked: Any) -> Path:
    """What `deploy build` makes of these flags, if it is not there."""
    from deploy.building.build import build
    from deploy.config import Config, with_overrides

    if not (out / MANIFEST).exists():
        build(with_overrides(Config(), dict(flags)), out, **asked)
    return out


def build_tiny(checkpoint: Path, out: Path, **asked: Any) -> Path:
    """A bundle of `write_tiny`'s network, for frames of 64x64 that overlap by 16."""
    return build_bundle(out, {"model.checkpoint": str(checkpoint), **TILED}, **asked)


def sign_copy(bundle: Path, folder: Path) -> tuple[Path, Path]:
    """A signed copy of a bundle, and whose public key tells that it is: `signed` and `ground.pub` of the folder."""
    signed, public = folder / "signed", folder / "ground.pub"
    if not (signed / MANIFEST).exists():
        key = write_keys(folder)
        copytree(bundle, signed)
        sign_bundle(signed, key, "")
    return signed, public


def build_one(out: Path, name: str) -> None:
    """Build one of `MODELS`."""
    import torch

    torch.set_num_threads(1)
    build_bundle(out / name, MODELS[name])


def build_all(out: Path) -> None:
    """Build them all into a folder, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        others = [pool.submit(build_one, out, name) for name in MODELS]
        weights = out / "tiny.safetensors"
        if not weights.exists():
            write_tiny(weights)
        sign_copy(build_tiny(weights, out / "tiny"), out)
        build_tiny(weights, out / "measuring", metrics="graph")
        for other in others:
            other.result()


if __name__ == "__main__":
    build_all(Path(sys.argv[1]).absolute())
