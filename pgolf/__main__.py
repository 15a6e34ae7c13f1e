"""`python -m pgolf`, also under torchrun."""

from pgolf.app.cli import main

if __name__ == "__main__":
    main()
