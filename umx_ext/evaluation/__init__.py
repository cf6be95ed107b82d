"""Judge a separation."""
