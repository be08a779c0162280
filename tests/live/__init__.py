"""`maild sync` as a process against a real Dovecot; skipped, with the reason, where there is none."""
