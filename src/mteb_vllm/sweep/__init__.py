"""Sweeps over settings, run in child processes, grouped by engine, and resumable.

A point is one combination of a sweep's values.

planning    the state, estimated work and engine of each point, and the order in which points run
table       the plan as a table
launcher    the Hydra launcher
job         the function that Hydra calls for each point, and the end of a sweep
supervisor  runs points in a child process, monitors it and replaces it
process     the child process as seen by the supervisor
child       the program of the child process
messages    the messages between them
summary     the file `sweep.json`
view        the live view
"""
