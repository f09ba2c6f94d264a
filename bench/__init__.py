"""`make bench`: what the manager costs, measured against the same work done by a plain script.

Each row's module has a function `measure(bench)` that returns rows; see `__main__.ROWS`.
"""
