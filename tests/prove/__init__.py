"""Long fault loops on real servers: `make prove NAME=flow`."""
