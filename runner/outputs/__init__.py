"""Where records go. Each destination is replaced as a whole or not at all."""
