"""Checks that a user's own method keeps what methods here promise. It needs no test framework."""

from jcl.testing.bench import Problem, perceptron
from jcl.testing.check import Checked, check_method
from jcl.testing.laws import Broken

__all__ = ["Broken", "Checked", "Problem", "check_method", "perceptron"]
