"""The emulator wrapper: standard library only, one file, starts in milliseconds, execs."""
