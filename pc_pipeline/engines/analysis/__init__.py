"""Questions asked of a finished run: tails, derivatives, reverse stress, attribution, and more.

`study` holds the pool, its models and the deal; every other module takes a `Study` and answers one question.
"""
