"""What the custom ops do on a CPU: loops in C++, compiled on the machine that runs them, and torch's products of matrices."""
