"""What writes parts of the documentation from the code, and sets the tree up."""
