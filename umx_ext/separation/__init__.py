"""Take a song apart."""
