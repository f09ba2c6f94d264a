"""Stand-ins: to inject faults, and for what cannot run here."""
