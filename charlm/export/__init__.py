"""Models that leave PyTorch: as one file of C, as ONNX, and as one page for a browser."""

from charlm.export.c import to_c
from charlm.export.html import to_html
from charlm.export.onnx import to_onnx

__all__ = ["to_c", "to_html", "to_onnx"]
