"""Ground floor: errors, random streams, months, and the store. Knows nothing of credit."""
