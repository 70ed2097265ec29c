"""DAMP (arXiv 2512.20251): network, checkpoint detection, static deployment form."""

from .checkpoint import ARCHITECTURE, build, is_network, recognises, stored_state
from .config import DampConfig
from .network import Damp

__all__ = ["ARCHITECTURE", "Damp", "DampConfig", "build", "is_network", "recognises", "stored_state"]
