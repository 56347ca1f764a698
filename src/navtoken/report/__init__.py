"""One self-contained HTML page out of plain tables and traces.

The page opens offline, by `file://`, with no external request: its content security policy forbids any.
Nothing here knows models, tasks or policies, so every stage can use it.
"""

from navtoken.report.figure import Figure, write_svg
from navtoken.report.histogram import EntropyHistogram, HistogramSection
from navtoken.report.markup import ReportError
from navtoken.report.page import Page, Section, TextSection, build_page, render_page
from navtoken.report.pieces import Decode, byte_level_decode
from navtoken.report.scatter import ScatterPoint, ScatterSection
from navtoken.report.table import Column, TableSection
from navtoken.report.traces import TracesSection

__all__ = [
    "Column",
    "Decode",
    "EntropyHistogram",
    "Figure",
    "HistogramSection",
    "Page",
    "ReportError",
    "ScatterPoint",
    "ScatterSection",
    "Section",
    "TableSection",
    "TextSection",
    "TracesSection",
    "build_page",
    "byte_level_decode",
    "render_page",
    "write_svg",
]
