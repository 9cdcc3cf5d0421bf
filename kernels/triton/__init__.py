"""Triton kernels and their launchers, a file for each; imported on the first launch, never by `import kernels`."""
