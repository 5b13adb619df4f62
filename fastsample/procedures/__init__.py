"""Samplers that decide while they run, one file per family; they ask and are told as a plan's run does."""

from fastsample.procedures import adaptive as adaptive
from fastsample.procedures import multilevel as multilevel
from fastsample.procedures import phase_ode as phase_ode
from fastsample.procedures import poisson_midpoint as poisson_midpoint
from fastsample.procedures import reverse_kernel as reverse_kernel
from fastsample.procedures.registry import Procedure, Setting, add, get, procedures

__all__ = ["Procedure", "Setting", "add", "get", "procedures"]
