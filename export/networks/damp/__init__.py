"""DAMP (arXiv 2512.20251): network, checkpoint detection, static deployment form."""

from .checkpoint import ARCHITECTURE, build, is_network, recognises, stored_state
from .config import SIZE_MULTIPLE, DampConfig
from .deployment import deployment_form, module_name
from .network import Damp, balances, probabilities

__all__ = [
    "ARCHITECTURE",
    "SIZE_MULTIPLE",
    "Damp",
    "DampConfig",
    "balances",
    "build",
    "deployment_form",
    "is_network",
    "module_name",
    "probabilities",
    "recognises",
    "stored_state",
]
