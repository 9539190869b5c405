"""`python -m experiments.data`: make, check or rebuild the built-in corpus, or a user's own."""

from experiments.data.command import main

if __name__ == "__main__":
    main()
