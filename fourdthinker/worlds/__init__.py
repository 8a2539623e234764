"""Procedural 4D worlds: rendered scenes with exact motion, and questions about them."""
