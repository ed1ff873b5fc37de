"""Metrics of the field and submission files."""
