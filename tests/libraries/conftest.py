"""Tables of rows are no tests, and import libraries that may not be there."""

collect_ignore_glob = ["rows_*.py", "*/rows_*.py"]
