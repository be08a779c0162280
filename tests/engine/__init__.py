"""Whole passes: the in-memory server over loopback, a real Maildir, a real state file."""
