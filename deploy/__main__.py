"""`python -m deploy` is `deploy`."""

from deploy.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
