"""One self-contained HTML page about a run."""

from fourdthinker.report.page import write_report
from fourdthinker.report.text import text_plain
from fourdthinker.report.verdict import verdict

__all__ = ["text_plain", "verdict", "write_report"]
