"""Reading objects of the cluster through its API server."""
