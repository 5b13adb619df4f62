"""The ops: one file each, with schema, reference, fake, autograd and Python entry."""

from ..errors import BackendError
from .brownian import brownian, brownian_
from .library import use_backend
from .metropolis import metropolis_
from .rescale import rescale_
from .threshold import threshold_
from .update import update, update_

__all__ = [
    "BackendError",
    "brownian",
    "brownian_",
    "metropolis_",
    "rescale_",
    "threshold_",
    "update",
    "update_",
    "use_backend",
]
