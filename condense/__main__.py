"""`python -m condense`."""

from condense.cli.app import main

if __name__ == "__main__":
    main()
