"""The tables are data, and the runner a program: pytest collects neither."""

collect_ignore_glob = ["*.py"]
