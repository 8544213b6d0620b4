"""The flight recorder: the last calls of each rank, and what they say of a job that hangs."""
