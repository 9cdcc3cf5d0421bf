"""What the custom ops do on a CPU: torch's own operations in an order that keeps memory small and products in low precision."""
