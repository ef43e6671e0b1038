"""The pictures, tables and text of a report: from arrays and dicts to files."""
