"""What goes into the seed: the merge of all plugins' contributions."""
