"""A spectral diffusion prior inside MST or BiSRNet (after arXiv 2507.13769): network, detection, deployment form."""

from typing import Any

from runtime.arrays import Float32
from runtime.signature import Prompt, Signature
from runtime.simulation.cassi import WAVELENGTHS

from .. import bisrnet, cassi, mst
from ..architecture import Architecture
from ..mst import Mst
from ..mst.config import SIZE_MULTIPLE
from .checkpoint import INPUT, LATENT, build, recognises
from .config import FULL, SMALL, SdpConfig
from .deployment import deployment_form, module_name
from .network import Sdp, SdpBisrnet, SdpMst, blank, wrap
from .prior import noise

__all__ = [
    "ARCHITECTURE", "FULL", "SMALL", "Sdp", "SdpBisrnet", "SdpConfig", "SdpMst", "blank", "deployment_form", "noise",
    "wrap",
]  # fmt: skip


def backbone_of(net: Sdp) -> Architecture:
    """The kind of network that the prior is inside."""
    return mst.ARCHITECTURE if isinstance(net, Mst) else bisrnet.ARCHITECTURE


def _latent(net: Sdp) -> int | str:
    return INPUT if net.seed is None else net.seed


def _signature(net: Sdp, lines: int, samples: int) -> Signature:
    of = cassi.signature(net, lines, samples)
    latent = Prompt("latent", (1, 1, net.prior.latent_dims), "constant", "prompts/latent.npy")
    return Signature(of.measured, of.restored, (latent,) if net.seed is None else (), tiling="fixed", band_groups=False)


def _constants(net: Sdp) -> dict[str, Float32]:
    return {"latent": noise(0, net.prior)} if net.seed is None else {}


def _configuration(net: Sdp) -> dict[str, Any]:
    of = backbone_of(net)
    return {"backbone": of.id, **of.configuration(net), **net.prior.as_dict(), "latent": _latent(net)}


def _about(net: Sdp) -> str:
    prior = net.prior
    return (
        f"{backbone_of(net).id} of {backbone_of(net).about(net)}; after the description of a prior of "
        f"{prior.latent_dims} numbers in {prior.diffusion_steps} steps, at {len(net.spim)} places"
    )


def _exact(node: str) -> bool:
    """Everything from the mean over pixels to the vectors that features meet."""
    return node.startswith(("hfe.mlp.", "diffusion", "spim.", "hfe/ReduceMean"))


ARCHITECTURE = Architecture(
    id="sdp",
    module=Sdp,
    multiple=SIZE_MULTIPLE,
    recognises=recognises,
    load=build,
    signature=_signature,
    static=deployment_form,
    configuration=_configuration,
    about=_about,
    size=cassi.frame_size,
    stored=cassi.stored_state,
    doubts=cassi.mask_doubts,
    module_name=module_name,
    options={**cassi.OPTIONS, "latent": LATENT},
    chosen=lambda net: {**net.said, "latent": _latent(net)},
    constants=_constants,
    tasks=cassi.TASKS,
    measure=cassi.measure,
    instrument=cassi.instrument,
    wavelengths=lambda net: WAVELENGTHS,
    float32_only=lambda net: backbone_of(net).float32_only(net),
    parity=lambda net: backbone_of(net).parity(net),
    exact=_exact,
)
