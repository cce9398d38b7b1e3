"""Contracts: states, units, names of series and channels, and one table schema per table."""
