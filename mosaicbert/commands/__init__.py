"""Commands that only print: each module is one command of the command line."""
