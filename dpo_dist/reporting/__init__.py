"""The report: tables, curves and one self-contained page."""
