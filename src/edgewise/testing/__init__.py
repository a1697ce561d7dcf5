"""The conformance suite: what every method promises, as one class of tests that a plug-in's author inherits.

from edgewise.testing import Conformance

class TestMine(Conformance):
    def make(self):
        return MyMethod(...)
"""

from edgewise.testing.conformance import Conformance
from edgewise.testing.world import World

__all__ = ["Conformance", "World"]
