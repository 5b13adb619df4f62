"""Langevin sampling of a fixed target."""
