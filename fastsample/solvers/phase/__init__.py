"""Phase-space samplers: a position x, the data, and a momentum m, coupled by a linear flow (PSLD and CLD).

Every one is a list of stages, 2x2 tables on (x, m), on what the network says and on two normals; one stage or several
are one row of a plan whose state holds both halves.
"""

from fastsample.solvers.phase import entries as entries
from fastsample.solvers.phase.process import PhaseSpace

__all__ = ["PhaseSpace"]
