"""`python -m stateset_agents` is the command line."""

from stateset_agents.cli import main

if __name__ == "__main__":
    main()
