"""What a run is on disk: a locked folder, a journal, and tables. Reading them needs no torch and no Ray."""
