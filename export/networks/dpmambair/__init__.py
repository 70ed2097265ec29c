"""DPMambaIR after the paper (arXiv 2504.17732): network, checkpoint detection, static deployment form."""

from runtime.signature import Plane, Prompt, Signature

from ..architecture import Architecture
from .checkpoint import build, recognises
from .config import SIZE_MULTIPLE, DPMambaConfig
from .deployment import deployment_form, memory
from .extractor import merged
from .network import DPMambaIR
from .scan import scan_nodes

__all__ = ["ARCHITECTURE", "SIZE_MULTIPLE", "DPMambaConfig", "DPMambaIR", "deployment_form", "memory"]


def _signature(net: DPMambaIR, lines: int, samples: int) -> Signature:
    c = net.config
    kind = "rgb" if c.bands == 3 else "cube"
    return Signature(
        Plane("frame", c.bands, lines, samples, kind),
        Plane("restored", c.bands, lines, samples, kind),
        (Prompt("embedding", (1, c.embedding), "embedding", "extractor"),),
        band_groups=c.bands != 3,
    )


def _about(net: DPMambaIR) -> str:
    c = net.config
    return f"after the paper: {c.blocks} blocks of {c.dim} channels and more, {c.states} states, {c.discretisation}"


ARCHITECTURE = Architecture(
    id="dpmambair",
    module=DPMambaIR,
    multiple=SIZE_MULTIPLE,
    recognises=recognises,
    load=build,
    signature=_signature,
    static=deployment_form,
    configuration=lambda net: net.config.as_dict(),
    about=_about,
    options={
        "delta": "alpha of Delta inside the softplus, or outside",
        "discretisation": "euler or zoh",
        "order": "the scan goes along rows or columns",
        "theta": "of the extractor's central differences, where its branches are not merged yet",
    },
    chosen=lambda net: {name: getattr(net.config, name) for name in ("delta", "discretisation", "order", "theta")},
    tasks=("haze", "rain", "snow", "lowlight", "motionblur", "grain", "jpeg"),
    # The recurrence, and what the embedding makes of every block: slow decays would be rounded to none.
    exact=lambda node: node.rpartition("/")[0].endswith((".ssm.scan", ".ssm.norm")) or node == "network/Gemm",
    memory=lambda net, lines, samples: memory(net.config, lines, samples),
    extractor=lambda net: merged(net.extractor, net.config),
    operators={"Scan": scan_nodes},
)
