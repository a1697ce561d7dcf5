"""Who picks among candidates: pure functions from numbers to positions."""
