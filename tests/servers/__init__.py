"""Servers and proxies on loopback that live tests and the bench start for themselves: nothing outside is touched.

`dovecot` runs a private Dovecot, `certificates` makes the certificates it may show, `proxy` stands between a client
and a server and adds delay, faults and counting. None of them imports maild.
"""
