"""Fuzzing of all that reads what others write; see `make fuzz`."""
