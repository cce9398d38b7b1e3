"""Networks and their checkpoints; no data frames but at the edge, no training."""
