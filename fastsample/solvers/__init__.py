"""Solvers: functions of a path that return rows, one file per family."""

from fastsample.solvers import conjugate_ddim as conjugate_ddim
from fastsample.solvers import consistency as consistency
from fastsample.solvers import deis as deis
from fastsample.solvers import dpm_fast as dpm_fast
from fastsample.solvers import dualfast as dualfast
from fastsample.solvers import edm as edm
from fastsample.solvers import first_order, multistep
from fastsample.solvers import forward_value as forward_value
from fastsample.solvers import phase as phase
from fastsample.solvers import pndm as pndm
from fastsample.solvers import poisson_midpoint as poisson_midpoint
from fastsample.solvers import rho_rk as rho_rk
from fastsample.solvers import sa as sa
from fastsample.solvers import singlestep as singlestep
from fastsample.solvers import unipc as unipc
from fastsample.solvers import usf as usf
from fastsample.solvers.registry import Solver, add, describe, find, names, solvers

__all__ = ["Solver", "add", "describe", "find", "first_order", "multistep", "names", "solvers"]
