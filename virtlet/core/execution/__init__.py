"""Commands in guests: from a CRI call or a streaming session to a plugin's session."""
