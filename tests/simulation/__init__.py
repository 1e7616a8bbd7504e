"""Whole lives of one spec against a service in memory: seeded faults, crashes, a hand-moved clock."""
