"""One self-contained HTML page from an artifact folder: `build_report` gives its text, `write_report` writes it."""

from aloe.report.page import build_report, write_report

__all__ = ["build_report", "write_report"]
