"""One pack from init to validation loss."""
