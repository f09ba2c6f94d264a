"""`kubectl virtlet`: what users of a cluster do with VM pods, from anywhere.

Nothing of it goes to a node: what asks a cluster does so over its API, by its user's own rights.
"""
