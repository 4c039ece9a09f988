"""What a run is on disk: a locked folder, a journal, and tables for readers. Reading needs no torch and no Ray."""
