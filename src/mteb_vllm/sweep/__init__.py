"""Sweeps over settings, run in child processes, grouped by engine, and resumable.

A point is one combination of a sweep's values.

planning    the state, estimated work and engine of each point, and the order in which points run
table       the plan as a table
launcher    the Hydra launchers, for this machine and for SLURM
job         the function that Hydra calls for each point, and the end of a sweep
supervisor  divides the engine groups among workers
queue       hands out engine groups as GPUs or cores become free
worker      runs engine groups in a child process, monitors it and replaces it
outcomes    the points' records and the sweep's summary
process     the child process as seen by a worker
child       the program of the child process
slurm       the child process as a job of SLURM, as seen by a worker
job_process the program of that job
nodes       the nodes on which such jobs run: their kind of device, and whether locks hold there
messages    the messages between them
summary     the file `sweep.json`
view        the live view
"""
