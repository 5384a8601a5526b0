"""What the sources promise, tested by training: one script a claim, `python -m benchmarks.claims.NAME`, and `python -m benchmarks.claims.table`."""
