"""The only room that knows Dagster: assets, checks, resources, partitions, automation, the launcher.

An asset body is one domain call plus metadata. What a stage computes is in `engines.stages`; what a
table may hold is in `schemas.tables`; how large a run is stands in `recipes`.
"""
