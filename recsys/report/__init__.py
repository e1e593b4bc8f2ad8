"""One page of HTML that shows what an evaluation found."""

from recsys.report.data import ReportData
from recsys.report.figure_style import check_matplotlib
from recsys.report.page import render_page

__all__ = ["ReportData", "check_matplotlib", "render_page"]
