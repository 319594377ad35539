"""`python -m quintet` is the `quintet` command."""

from quintet.cli import main

if __name__ == "__main__":
    main()
