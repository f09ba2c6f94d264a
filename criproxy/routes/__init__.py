"""Where each method goes: one file per rule, and the table of them."""
