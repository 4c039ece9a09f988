"""The report: one self-contained HTML page on one run. Reads what the run wrote, decides nothing."""
