"""`python -m criproxy`."""

from criproxy.main import main

if __name__ == "__main__":
    main(prog_name="criproxy")
