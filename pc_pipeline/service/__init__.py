"""Reserved for the REST application."""
