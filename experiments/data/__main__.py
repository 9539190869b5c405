"""`python -m experiments.data`: make, check or rebuild the built-in corpus."""

from experiments.data.techdocs import main

if __name__ == "__main__":
    main()
