"""Handing a launch over to the emulator, which goes through vmwrapper."""
