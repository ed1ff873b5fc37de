"""The training page: clips to scenes, plans, jobs, runs, and what they are worth."""
