"""The report page: one self-contained HTML file of outcomes (models x tasks), and its plots as PNG."""

from eval_zero_shot.report.page import write_report

__all__ = ["write_report"]
