"""How often the solver ``"ml-em"`` should ask the levels of a ladder: from a pilot run, or learned."""

from fastsample.multilevel.learn import Learned as Learned
from fastsample.multilevel.learn import learn as learn
from fastsample.multilevel.pilot import Pilot as Pilot
from fastsample.multilevel.pilot import pilot as pilot

__all__ = ["Learned", "Pilot", "learn", "pilot"]
