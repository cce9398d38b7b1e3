"""Loans: tape, panel and their exact law; transitions, trajectories, features, pool; schedules, ledger.

Here: everything known of a loan and its months, synthetic or delivered (`ingest`). Not here: macro paths
(`scenarios`), networks (`models`), Monte Carlo (`simulation`).
"""
