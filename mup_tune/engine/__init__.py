"""Two drivers of one protocol: this process, or lanes on Ray."""
