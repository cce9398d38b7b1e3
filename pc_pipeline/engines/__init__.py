"""Engines: objects users hold (PortfolioAggregator, SimulationResults) and the chain as plain stages."""
