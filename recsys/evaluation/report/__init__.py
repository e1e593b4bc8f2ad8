"""One page of HTML that shows what an evaluation found."""

from recsys.evaluation.report.data import ReportData
from recsys.evaluation.report.figure_style import check_matplotlib
from recsys.evaluation.report.page import render_page

__all__ = ["ReportData", "check_matplotlib", "render_page"]
