"""Surgery: parts of a model are taken out or put in."""
