"""What the producer and the worker both speak: plans, results, errors, settings, records, stacks."""
