"""DAMP (arXiv 2512.20251): network, checkpoint detection, static deployment form."""

from .config import DampConfig
from .network import Damp

__all__ = ["Damp", "DampConfig"]
