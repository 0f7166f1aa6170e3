"""What an experiment has shown so far: for a terminal, and as a page that needs nothing else."""

from rapidfireai.report.findings import Findings, Standing, find
from rapidfireai.report.page import as_html
from rapidfireai.report.terminal import show

__all__ = ["Findings", "Standing", "as_html", "find", "show"]
