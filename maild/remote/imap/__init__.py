"""IMAP4rev1 and IMAP4rev2: `parse` (bytes to values, pure), `session` (one connection), `remote` (the port)."""
