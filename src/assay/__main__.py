"""``python -m assay``, which is also what ``torchrun`` starts."""

from assay.cli import main

if __name__ == "__main__":
    main()
