"""Figures as inline SVG: pure functions from data to markup, drawn on light and on dark alike."""
