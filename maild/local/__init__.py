"""This machine's disk: Maildirs, the state of each account, and what makes both durable."""
