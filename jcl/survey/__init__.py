"""The field as *Continual Learning of Large Language Models* (arXiv 2404.16789) lists it."""

from jcl.survey.table import Paper, choose, find, papers

__all__ = ["Paper", "choose", "find", "papers"]
