"""The ops, one folder each: reference.py says what it computes, op.py how it is called, the rest how it is made fast."""
