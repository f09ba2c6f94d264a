"""The few places of a message that differ inside and outside: image names, ids, filters."""
