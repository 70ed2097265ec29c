"""BiSRNet (arXiv 2305.10299): network, checkpoint detection, static deployment form."""

from runtime.simulation.cassi import WAVELENGTHS

from .. import cassi
from ..architecture import Architecture
from .checkpoint import build, recognises
from .config import SIZE_MULTIPLE, BisrnetConfig
from .deployment import deployment_form
from .network import Bisrnet

__all__ = ["ARCHITECTURE", "Bisrnet", "BisrnetConfig", "deployment_form"]


def _about(net: Bisrnet) -> str:
    blocks = ", ".join(map(str, net.config.blocks))
    bodies = f"{net.config.stages} bodies of " if net.config.stages > 1 else ""
    return f"{bodies}{blocks} blocks with binary weights, {cassi.mask_text(net)}"


ARCHITECTURE = Architecture(
    id="bisrnet",
    module=Bisrnet,
    multiple=SIZE_MULTIPLE,
    recognises=recognises,
    load=build,
    signature=cassi.signature,
    static=deployment_form,
    configuration=lambda net: {**net.config.as_dict(), "mask": cassi.mask_facts(net)},
    about=_about,
    size=cassi.frame_size,
    stored=cassi.stored_state,
    doubts=cassi.mask_doubts,
    options=cassi.OPTIONS,
    chosen=lambda net: dict(net.said),
    tasks=cassi.TASKS,
    measure=cassi.measure,
    instrument=cassi.instrument,
    wavelengths=lambda net: WAVELENGTHS,
    float32_only=lambda net: "rounding turns signs over, and what FP16 takes for zero has none",
    # A sign that turns over moves single elements by several hundredths of the range, and the quality by nothing.
    parity=lambda net: "quality",
)
