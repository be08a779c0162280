"""What runs when: one account, one pass over one mailbox, and carrying out what was decided."""
