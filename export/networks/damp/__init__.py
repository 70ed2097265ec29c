"""DAMP (arXiv 2512.20251): network, checkpoint detection, static deployment form."""

from runtime.signature import Plane, Prompt, Side, Signature

from ..architecture import Architecture, Routing
from .checkpoint import build, recognises, stored_state
from .config import SIZE_MULTIPLE, DampConfig
from .deployment import deployment_form, module_name
from .network import Damp, balances, routers

__all__ = ["ARCHITECTURE", "SIZE_MULTIPLE", "Damp", "DampConfig", "deployment_form"]


def _signature(net: Damp, lines: int, samples: int) -> Signature:
    c = net.config
    return Signature(
        Plane("frame", c.bands, lines, samples),
        Plane("restored", c.bands, lines, samples),
        (Prompt("metrics", (1, c.metrics), "metrics", c.metric_set),),
        # A network without mixtures has nothing to choose.
        (Side("routing", (c.layers, c.experts)),) if c.layers else (),
    )


def _about(net: Damp) -> str:
    c = net.config
    return f"{c.metric_set}, {c.gate} gate, top-{c.top_k} of {c.experts}"


ARCHITECTURE = Architecture(
    id="damp",
    module=Damp,
    multiple=SIZE_MULTIPLE,
    recognises=recognises,
    load=build,
    signature=_signature,
    static=deployment_form,
    gathered=lambda net: deployment_form(net, gathered=True),
    configuration=lambda net: net.config.as_dict(),
    about=_about,
    stored=stored_state,
    # Routers choose as before in 16 bits, measured; a prompt's first layer takes metrics of any size.
    halved=lambda key, weight: weight.dim() > 1 and not key.startswith("dep."),
    module_name=module_name,
    options={"top_k": "experts that run for a frame"},
    chosen=lambda net: {"top_k": net.config.top_k},
    tasks=("noise", "blur", "sr", "inpaint", "bandloss", "poisson", "motionblur"),
    routing=Routing(lambda net: net.config.top_k, routers, balances),
)
