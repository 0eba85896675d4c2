"""Entry point of ``python -m distkg``, for environments without the ``distkg`` script on the path."""

from distkg.cli import main

if __name__ == "__main__":
    main()
