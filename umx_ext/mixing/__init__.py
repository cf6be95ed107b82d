"""Put stems together into a song."""
