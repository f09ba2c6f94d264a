"""The manager's settings: the options' table and the layers they come from."""
