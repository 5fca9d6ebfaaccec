"""The curves of one or several runs: run folders -> numbers -> one picture and one page."""
