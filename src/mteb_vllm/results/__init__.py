"""What a run leaves: its record, the results store and its look-up, and failures."""
