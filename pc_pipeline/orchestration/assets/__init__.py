"""Assets by group. Each body is one domain call plus metadata."""
