"""What made the shipped weights and Table 1; the package imports none of it."""
