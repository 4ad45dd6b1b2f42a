"""The results of runs: records, the results store and look-ups in it, and failures."""
