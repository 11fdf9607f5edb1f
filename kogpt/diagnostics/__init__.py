"""Seeing where two models part, and what one does inside."""
