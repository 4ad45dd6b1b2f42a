"""Sweeps: planned before anything is loaded, grouped by engine, run in a child process, survived and resumed.

planning    what each point comes down to: what is known of it, what it costs, which engine it needs
table       the plan, shown
launcher    Hydra's side of it
job         the function that Hydra calls for a point, and the end of a sweep
supervisor  gives points to a child process, watches it, replaces it
child       the process that runs points
messages    what they tell each other
view        what a user sees while it goes on
"""
