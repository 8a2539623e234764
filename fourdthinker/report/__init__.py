"""One self-contained HTML page about a run."""

from fourdthinker.report.page import write_report
from fourdthinker.report.verdict import verdict

__all__ = ["verdict", "write_report"]
