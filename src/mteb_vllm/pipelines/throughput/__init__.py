"""`pipeline=throughput`: the timed texts, the measurement, and the roofline."""
