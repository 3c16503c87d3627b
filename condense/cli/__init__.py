"""The command line: one file per command, each a signature, an order of calls and an exit code."""
