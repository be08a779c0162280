"""POP3: one maildrop, open on one session at a time (RFC 1939, with RFC 2449, 2595, 3206, 5034 where offered)."""
