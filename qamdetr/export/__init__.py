"""Answers as files: labels and tables, cut sounds, figures."""
