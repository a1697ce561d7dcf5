"""Stores under the same faults: what `benchmarks/stores.py` runs, one file a kind of fault and one a kind of store."""
