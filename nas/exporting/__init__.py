"""``nas export``: a network in the files of inference engines, each held against torch before it is kept."""

from __future__ import annotations

from nas.exporting.command import ExportSettings, export_model
from nas.exporting.formats import FORMATS, Export

__all__ = ["FORMATS", "Export", "ExportSettings", "export_model"]
