"""``python -m distkg``, for where the ``distkg`` script is not on the path."""

from distkg.cli import main

if __name__ == "__main__":
    main()
