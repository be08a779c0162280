"""Other machines: protocol adapters behind the ports of `maild.core.ports`."""
