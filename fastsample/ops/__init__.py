"""The ops: one file each, with schema, reference, fake, autograd and Python entry."""

from ..errors import BackendError
from .library import use_backend
from .update import update, update_

__all__ = ["BackendError", "update", "update_", "use_backend"]
