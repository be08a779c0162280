"""Servers that live in this process, for `maild demo` and the tests; nothing in the daemon imports them.

In reading order: `store` (mailboxes and messages: the truth a test compares with), `samples` (mail to fill one with),
`imap` (the IMAP server over a store), `faults` (what a test can make it do wrong), `wire` (the octets under it) and
`dialogue` (a server that plays a conversation from a text file).
"""
