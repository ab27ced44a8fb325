"""`python -m unloc`."""

from unloc.cli import main

main()
