"""Fast forms of what `model` says plainly: each is held to its reference by a test."""
