"""Errors of this package that no built-in one says.  Imports nothing."""

from __future__ import annotations


class BackendError(RuntimeError):
    """A backend was asked for by name that cannot run here; the message says why and what to do."""


class CaptureError(RuntimeError):
    """A run cannot be recorded and replayed; the message says why (docs/graphs.md)."""
