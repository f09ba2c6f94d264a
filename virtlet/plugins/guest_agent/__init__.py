"""Running commands in guests through the QEMU guest agent."""
