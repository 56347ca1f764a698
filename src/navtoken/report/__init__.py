"""One self-contained HTML page out of plain tables and traces.

The page opens offline, by `file://`, with no external request: its content security policy forbids any.
Nothing here knows models, tasks or policies, so every stage can use it.
"""

from navtoken.report.bars import BarsSection
from navtoken.report.branches import BranchesSection, BranchRow
from navtoken.report.cloud import CloudSection
from navtoken.report.curves import Curve, CurvesSection
from navtoken.report.figure import Figure, write_svg
from navtoken.report.histogram import EntropyHistogram, HistogramSection
from navtoken.report.markup import ReportError
from navtoken.report.page import Page, Section, TextSection, build_page, render_page
from navtoken.report.panels import PanelsSection
from navtoken.report.pieces import Decode, byte_level_decode, decode_of
from navtoken.report.scatter import ScatterPoint, ScatterSection
from navtoken.report.table import Column, TableSection
from navtoken.report.token_table import TokenRow, TokenTableSection
from navtoken.report.tokens import Branch, SentenceEnd
from navtoken.report.traces import TracesSection

__all__ = [
    "BarsSection",
    "Branch",
    "BranchRow",
    "BranchesSection",
    "CloudSection",
    "Column",
    "Curve",
    "CurvesSection",
    "Decode",
    "EntropyHistogram",
    "Figure",
    "HistogramSection",
    "Page",
    "PanelsSection",
    "ReportError",
    "ScatterPoint",
    "ScatterSection",
    "Section",
    "SentenceEnd",
    "TableSection",
    "TextSection",
    "TokenRow",
    "TokenTableSection",
    "TracesSection",
    "build_page",
    "byte_level_decode",
    "decode_of",
    "render_page",
    "write_svg",
]
