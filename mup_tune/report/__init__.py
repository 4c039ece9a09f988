"""The report: one self-contained HTML page on one run, for people. Reads what the run wrote, decides nothing."""
