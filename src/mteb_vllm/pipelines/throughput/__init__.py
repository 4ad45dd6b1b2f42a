"""What `pipeline=throughput` is made of: the texts that it times, and the roofline that it holds their speed against."""
