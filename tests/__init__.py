"""The tests: one folder per layer of the package, and the servers and the bench that they use."""
