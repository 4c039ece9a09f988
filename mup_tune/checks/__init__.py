"""Checks that train a few steps in this process and give a verdict."""
