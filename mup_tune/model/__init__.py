"""The model: a population of Falcon-H1 members of one Shape, trained as one module."""
