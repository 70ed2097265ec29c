"""MST (arXiv 2111.07910): network, checkpoint detection, static deployment form."""

from runtime.simulation.cassi import WAVELENGTHS

from .. import cassi
from ..architecture import Architecture
from .checkpoint import build, recognises
from .config import SIZE_MULTIPLE, MstConfig
from .deployment import deployment_form
from .network import Mst

__all__ = ["ARCHITECTURE", "Mst", "MstConfig", "deployment_form"]


def _about(net: Mst) -> str:
    blocks = ", ".join(map(str, net.config.blocks))
    return f"{blocks} blocks, {cassi.mask_text(net)}"


ARCHITECTURE = Architecture(
    id="mst",
    module=Mst,
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
)
