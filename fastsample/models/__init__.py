"""Networks: the wrapper that says what a network predicts, the exact Gaussian mixture, and the shipped digits."""

from .loading import load_model
from .mixture import GaussianMixture
from .network import Network, as_network

__all__ = ["GaussianMixture", "Network", "as_network", "load_model"]
