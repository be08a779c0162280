"""What each subcommand does, one module each; `cli` imports the one that is asked for."""
